// password.go: what a new password must be. Asked whenever one is set, never at
// a login.
//
// NIST SP 800-63B-4 section 3.1.1.2 asks for a blocklist of common, expected and compromised
// values and for no rules about kinds of characters. OWASP ASVS 5.0 asks for the context's own
// words (6.1.2, 6.2.11) and for the 3,000 most common passwords at least (6.2.4). Everything is
// compared without case; nothing is asked over the network.

package main

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// commonPasswords holds over 11,000 entries, each of 8 characters and more, in lower case, sorted
// by byte, each ended by a newline. They come from public frequency lists of leaked passwords;
// because few of those reach the default minimum of 15 characters, the most used short ones are
// in it too, stretched the way people do it (repeated, or with digits counted up behind). It
// stays text and is searched in place: a map of it would fill a megabyte for a rare question.
//
//go:embed passwords.txt
var commonPasswords string

// Every entry of commonPasswords has at least and at most so many bytes.
const (
	shortestCommon = 8
	longestCommon  = 40
)

// sequences are rows that fingers or the alphabet run along. Each is a circle (after 0 comes 1
// again), and is read from any place, forward and backward.
var sequences = [...]string{
	"abcdefghijklmnopqrstuvwxyz",
	"1234567890",
	"!@#$%^&*()",
	"1234567890qwertyuiopasdfghjklzxcvbnm",          // US keyboard, row by row
	"1234567890-=qwertyuiop[]asdfghjkl;'zxcvbnm,./", // the same with its punctuation
	"1234567890qwertzuiopasdfghjklyxcvbnm",          // German
	"1234567890azertyuiopqsdfghjklmwxcvbn",          // French
	"1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p",          // US keyboard, column by column
	"qazwsxedcrfvtgbyhnujmikolp",
	"1q2w3e4r5t6y7u8i9o0p", // two rows in turn
	"q1w2e3r4t5y6u7i8o9p0",
}

// maxPassword is in bytes; NIST SP 800-63B-4 wants 64 characters at least.
const maxPassword = 1024

// passwordProblem returns the rule that a new password breaks, as a phrase for
// the person, or "". minLength is in characters.
func passwordProblem(username, password string, minLength int) string {
	switch {
	case utf8.RuneCountInString(password) < minLength:
		return fmt.Sprintf("Password must have at least %d characters", minLength)
	case len(password) > maxPassword:
		return fmt.Sprintf("Password must have at most %d bytes", maxPassword)
	case !utf8.ValidString(password), strings.Contains(password, "\x00"):
		return "Password must be text without a NUL character"
	}
	return weakPassword(username, password)
}

// weakPassword says which rule a new password breaks, as a phrase for the person ("" = none).
//
// A username of one or two letters is in nearly every sentence, so it counts only when the
// password is nothing but that name, once or repeated; from three letters on it may not occur.
func weakPassword(username, password string) string {
	username, password = strings.ToLower(username), strings.ToLower(password)
	_, first := utf8.DecodeRuneInString(password)
	switch {
	case repeats(password, username), len(username) > 2 && strings.Contains(password, username):
		return "Password must not contain the username"
	case strings.Contains(password, "ringward"):
		return "Password must not contain the name ringward"
	case repeats(password, password[:first]):
		return "Password must not be one character repeated"
	case isSequence(password):
		return "Password must not be a plain sequence of letters, digits or keys"
	case isCommon(password):
		return "Password must not be one of the most common ones"
	case joinsCommon(password, 3):
		return "Password must not be made of common passwords only"
	}
	return ""
}

// repeats says whether s is unit over and over.
func repeats(s, unit string) bool {
	return strings.ReplaceAll(s, unit, "") == ""
}

// isSequence says whether s, as a whole, is a piece of one of the sequences.
func isSequence(s string) bool {
	backward := []rune(s)
	slices.Reverse(backward)
	for _, row := range sequences {
		circle := strings.Repeat(row, len(s)/len(row)+2)
		if strings.Contains(circle, s) || strings.Contains(circle, string(backward)) {
			return true
		}
	}
	return false
}

// isCommon says whether s, in lower case, is an entry of commonPasswords. The binary search halves
// bytes, not lines: lo and hi are always where a line begins.
func isCommon(s string) bool {
	lo, hi := 0, len(commonPasswords)
	for lo < hi {
		mid := lo + (hi-lo)/2
		start := lo + strings.LastIndexByte(commonPasswords[lo:mid], '\n') + 1
		entry, _, _ := strings.Cut(commonPasswords[start:hi], "\n")
		switch strings.Compare(s, entry) {
		case 0:
			return true
		case -1:
			hi = start
		default:
			lo = start + len(entry) + 1
		}
	}
	return false
}

// joinsCommon says whether s is a concatenation of up to n entries. It looks no further than the
// longest entry reaches, so that 1,024 bytes cost little more than a short password.
func joinsCommon(s string, n int) bool {
	if isCommon(s) {
		return true
	}
	for i := shortestCommon; n > 1 && i <= min(longestCommon, len(s)-shortestCommon); i++ {
		if isCommon(s[:i]) && joinsCommon(s[i:], n-1) {
			return true
		}
	}
	return false
}
