// qr_test.go reads QR codes back with a decoder that shares nothing with the
// encoder: it finds its way by the standard (ISO/IEC 18004) and by the tables
// below alone, which are of the standard's annexes.
package main

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"testing"
)

// qrBlocks is table 9 for level M: for each version how many blocks there are of
// how many codewords, and how many of these are data.
var qrBlocks = map[int][][3]int{1: {{1, 26, 16}}, 2: {{1, 44, 28}}, 3: {{1, 70, 44}}, 4: {{2, 50, 32}}, 5: {{2, 67, 43}}, 6: {{4, 43, 27}},
	7: {{4, 49, 31}}, 8: {{2, 60, 38}, {2, 61, 39}}, 9: {{3, 58, 36}, {2, 59, 37}}, 10: {{4, 69, 43}, {1, 70, 44}}}

// qrAlign is annex E.
var qrAlign = map[int][]int{1: {}, 2: {6, 18}, 3: {6, 22}, 4: {6, 26}, 5: {6, 30}, 6: {6, 34}, 7: {6, 22, 38}, 8: {6, 24, 42}, 9: {6, 26, 46}, 10: {6, 28, 50}}

// qrFormats is annex C: of level M, the fifteen bits for each mask.
var qrFormats = []string{"101010000010010", "101000100100101", "101111001111100", "101101101001011", "100010111111001", "100000011001110", "100111110010111", "100101010100000"}

// qrVersionBits is annex D.
var qrVersionBits = map[int]int{7: 0x07C94, 8: 0x085BC, 9: 0x09A99, 10: 0x0A4D3}

var qrMasks = []func(i, j int) bool{
	func(i, j int) bool { return (i+j)%2 == 0 }, func(i, j int) bool { return i%2 == 0 }, func(i, j int) bool { return j%3 == 0 },
	func(i, j int) bool { return (i+j)%3 == 0 }, func(i, j int) bool { return (i/2+j/3)%2 == 0 }, func(i, j int) bool { return i*j%2+i*j%3 == 0 },
	func(i, j int) bool { return (i*j%2+i*j%3)%2 == 0 }, func(i, j int) bool { return ((i+j)%2+i*j%3)%2 == 0 },
}

// readQR returns the text of a code that has no error at all.
func readQR(rows []string) (string, error) {
	size := len(rows)
	version := (size - 17) / 4
	if size != 17+4*version || version < 1 || version > 10 {
		return "", fmt.Errorf("no version has %d rows", size)
	}
	dark := func(i, j int) bool { return rows[i][j] == '1' }
	taken := make([][]bool, size)
	for i, row := range rows {
		if taken[i] = make([]bool, size); len(row) != size || strings.Trim(row, "01") != "" {
			return "", fmt.Errorf("row %d is %q", i, row)
		}
	}
	// pattern takes what is drawn in #, . and blanks (which are not looked at).
	pattern := func(top, left int, lines ...string) error {
		for i, line := range lines {
			for j, c := range line {
				if c != ' ' && dark(top+i, left+j) != (c == '#') {
					return fmt.Errorf("row %d, column %d is wrong", top+i, left+j)
				}
				taken[top+i][left+j] = taken[top+i][left+j] || c != ' '
			}
		}
		return nil
	}
	var wrong []error
	look := func(err error) {
		if err != nil {
			wrong = append(wrong, err)
		}
	}
	finder := []string{"#######.", "#.....#.", "#.###.#.", "#.###.#.", "#.###.#.", "#.....#.", "#######.", "........"}
	flip := func(lines []string) (flipped []string) {
		for _, line := range lines {
			b := []byte(line)
			slices.Reverse(b)
			flipped = append(flipped, string(b))
		}
		return flipped
	}
	look(pattern(0, 0, finder...))
	look(pattern(0, size-8, flip(finder)...))
	bottom := slices.Clone(finder)
	slices.Reverse(bottom)
	look(pattern(size-8, 0, bottom...))
	timing := strings.Repeat("#.", size)[:size-16]
	look(pattern(6, 8, timing))
	for i, c := range timing {
		look(pattern(8+i, 6, string(c)))
	}
	look(pattern(size-8, 8, "#"))
	for _, i := range qrAlign[version] {
		for _, j := range qrAlign[version] {
			if !(i == 6 && j == 6 || i == 6 && j == size-7 || i == size-7 && j == 6) {
				look(pattern(i-2, j-2, "#####", "#...#", "#.#.#", "#...#", "#####"))
			}
		}
	}
	if version >= 7 {
		top, left := 0, 0
		for i := range 18 {
			if dark(i/3, size-11+i%3) {
				top |= 1 << i
			}
			if dark(size-11+i%3, i/3) {
				left |= 1 << i
			}
			taken[i/3][size-11+i%3], taken[size-11+i%3][i/3] = true, true
		}
		if top != qrVersionBits[version] || left != top {
			look(fmt.Errorf("the version is %x and %x", top, left))
		}
	}
	// Figure 25: bit 14, the first of the text, is left in the row, and bit 0 is
	// on top in the column; the second copy is split likewise.
	around, apart := "", ""
	for _, at := range [][2]int{{8, 0}, {8, 1}, {8, 2}, {8, 3}, {8, 4}, {8, 5}, {8, 7}, {8, 8}, {7, 8}, {5, 8}, {4, 8}, {3, 8}, {2, 8}, {1, 8}, {0, 8}} {
		around += rows[at[0]][at[1] : at[1]+1]
		taken[at[0]][at[1]] = true
	}
	for k := range 15 {
		i, j := size-1-k, 8
		if k >= 7 {
			i, j = 8, size-15+k
		}
		apart += rows[i][j : j+1]
		taken[i][j] = true
	}
	mask := slices.Index(qrFormats, around)
	if mask < 0 || apart != around {
		return "", fmt.Errorf("the format is %s and %s", around, apart)
	}

	var stream []bool
	up := true
	for right := size - 1; right >= 1; right -= 2 {
		if right == 6 {
			right = 5
		}
		for k := range size {
			i := k
			if up {
				i = size - 1 - k
			}
			for _, j := range []int{right, right - 1} {
				if !taken[i][j] {
					stream = append(stream, dark(i, j) != qrMasks[mask](i, j))
				}
			}
		}
		up = !up
	}
	var words []byte
	for ; len(stream) >= 8; stream = stream[8:] {
		var b byte
		for _, bit := range stream[:8] {
			b <<= 1
			if bit {
				b |= 1
			}
		}
		words = append(words, b)
	}
	type block struct {
		words []byte
		total int
		data  int
	}
	var blocks []*block
	for _, group := range qrBlocks[version] {
		for range group[0] {
			blocks = append(blocks, &block{nil, group[1], group[2]})
		}
	}
	for _, check := range []bool{false, true} {
		for some := true; some; {
			some = false
			for _, b := range blocks {
				end := b.data
				if check {
					end = b.total
				}
				if len(b.words) < end && len(words) > 0 {
					b.words, words, some = append(b.words, words[0]), words[1:], true
				}
			}
			if longest := slices.MaxFunc(blocks, func(a, b *block) int { return a.data - b.data }); !check && len(longest.words) == longest.data {
				break
			}
		}
	}
	var data []byte
	for n, b := range blocks {
		if len(b.words) != b.total {
			return "", fmt.Errorf("block %d has %d codewords of %d", n, len(b.words), b.total)
		}
		// A whole block, as a polynomial, is 0 at each root of the generator.
		for root := range b.total - b.data {
			sum := 0
			for _, w := range b.words {
				sum = times(sum, power(root)) ^ int(w)
			}
			look(map[bool]error{true: fmt.Errorf("block %d is not 0 at root %d", n, root)}[sum != 0])
		}
		data = append(data, b.words[:b.data]...)
	}
	if wrong != nil {
		return "", fmt.Errorf("%v", wrong)
	}

	// Four bits of mode, the length, the bytes, four bits of end, and padding.
	text := make([]string, len(data))
	for i, b := range data {
		text[i] = fmt.Sprintf("%08b", b)
	}
	all := strings.Join(text, "")
	next := func(n int) (value int) {
		fmt.Sscanf(all[:n], "%b", &value)
		all = all[n:]
		return value
	}
	if mode := next(4); mode != 4 {
		return "", fmt.Errorf("the mode is %d", mode)
	}
	length := next(map[bool]int{true: 8, false: 16}[version < 10])
	var read []byte
	for range length {
		read = append(read, byte(next(8)))
	}
	if next(min(4, len(all))) != 0 {
		return "", fmt.Errorf("the text has no end")
	}
	next(len(all) % 8)
	for pad := 0xEC; len(all) > 0; pad ^= 0xEC ^ 0x11 {
		if got := next(8); got != pad {
			return "", fmt.Errorf("padded with %x", got)
		}
	}
	return string(read), nil
}

// times multiplies in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1, as carryless
// long multiplication and then division.
func times(a, b int) int {
	product := 0
	for ; b > 0; b >>= 1 {
		if b&1 == 1 {
			product ^= a
		}
		a <<= 1
	}
	for bits.Len(uint(product)) > 8 {
		product ^= 0x11D << (bits.Len(uint(product)) - 9)
	}
	return product
}

func power(n int) int {
	p := 1
	for range n {
		p = times(p, 2)
	}
	return p
}

// Every length that fits is read back, in the smallest version that holds it.
func TestQRCode(t *testing.T) {
	sizes := map[int]int{14: 1, 15: 2, 26: 2, 27: 3, 42: 3, 43: 4, 62: 4, 63: 5, 84: 5, 85: 6, 106: 6, 107: 7, 122: 7, 123: 8, 152: 8, 153: 9, 180: 9, 181: 10, 213: 10}
	for n := range maxQR + 1 {
		if sizes[n] == 0 && n%9 != 0 {
			continue
		}
		text := make([]byte, n)
		for i := range text {
			text[i] = byte(i*i*7 + n)
		}
		rows := qrCode(string(text))
		if got, err := readQR(rows); err != nil || got != string(text) {
			t.Fatalf("%d bytes: read %q, %v", n, got, err)
		}
		if version := sizes[n]; version != 0 && len(rows) != 17+4*version {
			t.Errorf("%d bytes: %d rows", n, len(rows))
		}
	}
	if rows := qrCode(strings.Repeat("x", maxQR+1)); rows != nil {
		t.Errorf("%d bytes do not fit, but there are %d rows", maxQR+1, len(rows))
	}
	// The decoder notices a single module that is wrong. Of the versions that a
	// text may have, the seventh is the first without modules that mean nothing.
	rows := qrCode(strings.Repeat("x", 110))
	for i := range rows {
		for j := i % 4; j < len(rows); j += 4 {
			changed := slices.Clone(rows)
			b := []byte(changed[i])
			b[j] ^= 1
			changed[i] = string(b)
			if _, err := readQR(changed); err == nil {
				t.Errorf("row %d, column %d may be anything", i, j)
			}
		}
	}
}
