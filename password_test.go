// The rules of password.go as tables (each row is a claim), the promises of passwords.txt that its
// search rests on, and a fuzz target.

package main

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

const (
	hasUsername = "Password must not contain the username"
	hasProduct  = "Password must not contain the name ringward"
	oneChar     = "Password must not be one character repeated"
	aSequence   = "Password must not be a plain sequence of letters, digits or keys"
	isListed    = "Password must not be one of the most common ones"
	listedParts = "Password must not be made of common passwords only"
)

func TestWeakPasswordIsRefused(t *testing.T) {
	for _, tt := range []struct{ username, password, want string }{
		{"frodo", "frodo-of-the-shire", hasUsername},
		{"frodo", "the ring of Frodo Baggins", hasUsername},
		{"frodo", "FRODO20260000000", hasUsername},
		{"Frodo", "xfrodoxxxxyxxxxzxxx", hasUsername},
		{"frodo.baggins@shire", "i am frodo.baggins@shire", hasUsername},
		{"sam", "sam-gamgee-2026-gardener", hasUsername},
		{"1984", "george orwell 1984 novel", hasUsername},
		{"al", "alalalalalalalal", hasUsername},
		{"al", "AlAlAlAlAlAlAlAl", hasUsername},
		{"x", "xxxxxxxxxxxxxxxx", hasUsername},
		{"sam", "ringward12345678", hasProduct},
		{"sam", "my RingWard password", hasProduct},

		{"sam", "aaaaaaaaaaaaaaa", oneChar},
		{"sam", "aAaAaAaAaAaAaAaA", oneChar},
		{"sam", "7777777777777777777777777", oneChar},
		{"sam", "               ", oneChar},
		{"sam", strings.Repeat("é", 15), oneChar},
		{"sam", strings.Repeat("💍", 15), oneChar},
		{"sam", strings.Repeat("z", 1024), oneChar},

		{"sam", "abcdefghijklmnop", aSequence},
		{"sam", "ABCDEFGHIJKLMNOP", aSequence},
		{"sam", "ponmlkjihgfedcba", aSequence},
		{"sam", "lmnopqrstuvwxyzabc", aSequence},
		{"sam", "123456789012345", aSequence},
		{"sam", "1234567890123456", aSequence},
		{"sam", "0123456789012345", aSequence},
		{"sam", "567890123456789012345678901234567890", aSequence},
		{"sam", "9876543210987654", aSequence},
		{"sam", strings.Repeat("1234567890", 102), aSequence},
		{"sam", "qwertyuiopasdfghjkl", aSequence},
		{"sam", "QWERTYuiopasdfghjklzxcvbnm", aSequence},
		{"sam", "mnbvcxzlkjhgfdsa", aSequence},
		{"sam", "1234567890qwertyuiop", aSequence},
		{"sam", "1234567890-=qwertyuiop[]", aSequence},
		{"sam", "qwertzuiop", aSequence},
		{"sam", "qwertzuiopasdfghjkl", aSequence},
		{"sam", "azertyuiopqsdfghjklm", aSequence},
		{"sam", "1qaz2wsx3edc4rfv", aSequence},
		{"sam", "2wsx3edc4rfv5tgb6yhn", aSequence},
		{"sam", "qazwsxedcrfvtgbyhn", aSequence},
		{"sam", "1q2w3e4r5t6y7u8i", aSequence},
		{"sam", "q1w2e3r4t5y6u7i8", aSequence},
		{"sam", "!@#$%^&*()!@#$%^", aSequence},

		{"sam", "password", isListed},
		{"sam", "PassWord", isListed},
		{"sam", "p@ssw0rd", isListed},
		{"sam", "iloveyou", isListed},
		{"sam", "sunshine", isListed},
		{"sam", "princess", isListed},
		{"sam", "football", isListed},
		{"sam", "trustno1", isListed},
		{"sam", "CONTRASEÑA", isListed},
		{"sam", "passwordpassword", isListed},
		{"sam", "password1234567", isListed},
		{"sam", "Qwerty123456789", isListed},
		{"sam", "123456789123456789", isListed},
		{"sam", "thequickbrownfox", isListed},
		{"sam", "manchesterunited", isListed},
		{"sam", "AdminAdminAdmin", isListed},
		{"sam", "monkeymonkeymonkey", isListed},
		{"sam", "letmein12345678", isListed},
		{"sam", "121212121212121", isListed},

		{"sam", "password123password123", listedParts},
		{"sam", "iloveyoupassword", listedParts},
		{"sam", "sunshineprincess", listedParts},
		{"sam", "SunShinePrincess", listedParts},
		{"sam", "password12345678", listedParts},
		{"sam", "princessprincessprincess", listedParts},
		{"sam", "footballbaseballsuperman", listedParts},
		{"sam", "p@ssw0rdp@ssw0rd123", listedParts},
		{"sam", "supercalifragilisticexpialidocious" + "thequickbrownfoxjumpsoverthelazydog" + "thequickbrownfoxjumpsoverthelazydog", listedParts},
	} {
		if got := weakPassword(tt.username, tt.password); got != tt.want {
			t.Errorf("weakPassword(%q, %q) = %q, want %q", tt.username, tt.password, got, tt.want)
		}
	}
}

func TestGoodPasswordPasses(t *testing.T) {
	for _, tt := range []struct{ username, password string }{
		{"frodo", "speak-friend-and-enter"},
		{"frodo", "correct horse battery staple"},
		{"frodo", "mellon mellon mellon!"},
		{"frodo", "my precious ring of power"},
		{"frodo", "fro-do spelled apart 12"},
		{"frodo", "odorf read backwards"},
		{"sam", "s a m with spaces between"},
		{"al", "always alone in the halls"}, // two letters are in everything
		{"a", "a passphrase with a few words"},
		{"", "nobody has no name at all"},
		{"frodo", "a ring, and a ward for it"},

		{"sam", "aaaaaaaaaaaaaaab"},
		{"sam", "baaaaaaaaaaaaaaa"},
		{"sam", "hoho-haha-hihi-hehe"},
		{"sam", strings.Repeat("é", 14) + "è"},

		{"sam", "abcdefghijklmnoq"},
		{"sam", "acegikmoqsuwybdfh"},
		{"sam", "abcdefgh the alphabet"},
		{"sam", "qwerty keys are here"},
		{"sam", "123456789012346x"},
		{"sam", "8014963275508213"},

		// On the list only in part, or joined with something that is not.
		{"sam", "password of the inn"},
		{"sam", "iloveyou, rosie"},
		{"sam", "sunshine princess"},
		{"sam", "sunshineprincessx"},
		{"sam", "xsunshineprincess"},
		{"sam", "sunshinexprincess"},
		{"sam", "sunshineprincesspony"},                     // pony is shorter than any entry
		{"sam", "princessprincessprincessprincess"},         // four
		{"sam", "sunshineprincesspasswordfootballbaseball"}, // five
		{"sam", "password\npassword1"},                      // two lines of the file

		{"sam", "kein-tag-ohne-gärtnern"},
		{"sam", "Ein Ring, sie zu knechten"},
		{"sam", "指輪物語の旅の仲間たちはどこへ行く"},
		{"sam", "один на всех кольцо"},
		{"sam", "💍🌋🧙🏔️🐉🗡️🏹🪓🍄🥔🍺🌾🚪🔑👁️"},
		{"sam", "e3b0c44298fc1c149afbf4c8996fb924"},
		{"sam", "k7#Vq!zR2m@Lx9$T"},
		{"sam", strings.Repeat("gandalf & balrog ", 60)},
	} {
		if got := weakPassword(tt.username, tt.password); got != "" {
			t.Errorf("weakPassword(%q, %q) = %q, want none", tt.username, tt.password, got)
		}
	}
}

// The search is right only while the list keeps these promises.
func TestCommonPasswords(t *testing.T) {
	text, ended := strings.CutSuffix(commonPasswords, "\n")
	if !ended {
		t.Error("the last entry is not ended by a newline")
	}
	entries := strings.Split(text, "\n")
	long := 0
	for i, entry := range entries {
		if !utf8.ValidString(entry) || strings.ContainsFunc(entry, func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) }) {
			t.Errorf("line %d: %q is not plain text", i+1, entry)
		}
		if entry != strings.ToLower(entry) {
			t.Errorf("line %d: %q is not in lower case", i+1, entry)
		}
		if utf8.RuneCountInString(entry) < shortestCommon || len(entry) > longestCommon {
			t.Errorf("line %d: %q is too short or too long", i+1, entry)
		}
		if i > 0 && entries[i-1] >= entry {
			t.Errorf("line %d: %q does not sort after %q", i+1, entry, entries[i-1])
		}
		if utf8.RuneCountInString(entry) >= 15 {
			long++
		}
		if !isCommon(entry) {
			t.Errorf("line %d: %q is not found", i+1, entry)
		}
		if weakPassword("", strings.ToUpper(entry)) == "" {
			t.Errorf("line %d: %q passes", i+1, strings.ToUpper(entry))
		}
	}
	// ASVS 6.2.4: 3,000 that fit the policy, whose default minimum is 15.
	if len(entries) < 3000 || long < 3000 {
		t.Errorf("%d entries, %d of them of 15 characters and more; want 3000 of each", len(entries), long)
	}
}

// What only begins or ends like an entry is not found.
func TestIsCommonIsExact(t *testing.T) {
	entries := map[string]bool{}
	for entry := range strings.Lines(commonPasswords) {
		entries[strings.TrimSuffix(entry, "\n")] = true
	}
	near := []string{"", "\n", " ", "\xff", "~~~~~~~~~~", "password\npassword1"}
	for entry := range entries {
		near = append(near, entry[1:], entry[:len(entry)-1], entry+"\n", "\n"+entry, entry+"\x00")
	}
	for _, s := range near {
		if got := isCommon(s); got != entries[s] {
			t.Errorf("isCommon(%q) = %t", s, got)
		}
	}
}

func FuzzWeakPassword(f *testing.F) {
	for _, seed := range [][2]string{
		{"frodo", "speak-friend-and-enter"}, {"al", "alalalalalalalal"}, {"sam", "sunshineprincess"},
		{"", ""}, {"sam", "1234567890123456"}, {"sam", "\xff\xfe\x00"}, {"İ", "Kelvin İstanbul ſ"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, username, password string) {
		got := weakPassword(username, password)
		for _, fold := range []func(rune) rune{asciiUpper, asciiLower} {
			if folded := weakPassword(strings.Map(fold, username), strings.Map(fold, password)); folded != got {
				t.Errorf("%q, %q: %q, and with other case %q", username, password, got, folded)
			}
		}
	})
}

func asciiUpper(r rune) rune {
	if 'a' <= r && r <= 'z' {
		return r - 'a' + 'A'
	}
	return r
}

func asciiLower(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		return r - 'A' + 'a'
	}
	return r
}

func BenchmarkWeakPassword(b *testing.B) {
	for name, password := range map[string]string{
		"phrase":    "speak-friend-and-enter",
		"joined":    "princessprincessprincesx",
		"prefixes":  strings.Repeat("11111111", 14) + "1111111x",
		"longest":   strings.Repeat("gandalf & balrog ", 60),
		"digits":    strings.Repeat("1234567890", 102) + "11",
		"same":      strings.Repeat("a", 1023) + "b",
		"multibyte": strings.Repeat("語", 340) + "言",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				weakPassword("sam", password)
			}
		})
	}
}
