// qr.go: a QR code (ISO/IEC 18004) for the address of an authenticator app:
// bytes only, error correction M, versions 1 to 10, which is 213 bytes.
package main

const maxQR = 213 // bytes

// qrVersions has, for each version, the error correction codewords of a block,
// how many blocks there are, the data codewords of the first, how many of the
// last have one more, and the rows and columns of the alignment patterns.
var qrVersions = []struct {
	ecc, blocks, data, longer int
	align                     []int
}{
	{10, 1, 16, 0, nil},
	{16, 1, 28, 0, []int{6, 18}},
	{26, 1, 44, 0, []int{6, 22}},
	{18, 2, 32, 0, []int{6, 26}},
	{24, 2, 43, 0, []int{6, 30}},
	{16, 4, 27, 0, []int{6, 34}},
	{18, 4, 31, 0, []int{6, 22, 38}},
	{22, 4, 38, 2, []int{6, 24, 42}},
	{22, 5, 36, 2, []int{6, 26, 46}},
	{26, 5, 43, 1, []int{6, 28, 50}},
}

// qrCode returns the rows of the code, '1' for dark, or nil for a text that is
// too long. Around it belong four modules of white.
func qrCode(text string) []string {
	for i := range qrVersions {
		if codewords := qrData(text, i+1); codewords != nil {
			return newQR(i + 1).draw(codewords)
		}
	}
	return nil
}

// qrData returns the codewords in the order in which they are drawn, or nil
// where the version is too small.
func qrData(text string, version int) []byte {
	v := qrVersions[version-1]
	var bits []byte // one each
	put := func(value, n int) {
		for n--; n >= 0; n-- {
			bits = append(bits, byte(value>>n&1))
		}
	}
	put(0b0100, 4) // bytes follow
	if version < 10 {
		put(len(text), 8)
	} else {
		put(len(text), 16)
	}
	for _, c := range []byte(text) {
		put(int(c), 8)
	}
	room := 8 * (v.blocks*v.data + v.longer)
	if len(bits) > room {
		return nil
	}
	put(0, min(4, room-len(bits)))
	put(0, -len(bits)&7)
	for pad := 0xEC; len(bits) < room; pad ^= 0xEC ^ 0x11 {
		put(pad, 8)
	}
	data := make([]byte, room/8)
	for i, bit := range bits {
		data[i/8] |= bit << (7 - i%8)
	}
	var blocks, checks [][]byte
	for i := range v.blocks {
		n := v.data
		if i >= v.blocks-v.longer {
			n++
		}
		blocks, data = append(blocks, data[:n]), data[n:]
		checks = append(checks, reedSolomon(blocks[i], v.ecc))
	}
	var drawn []byte
	for _, list := range [][][]byte{blocks, checks} {
		for i := range len(list[len(list)-1]) {
			for _, block := range list {
				if i < len(block) {
					drawn = append(drawn, block[i])
				}
			}
		}
	}
	return drawn
}

// reedSolomon returns n check bytes over GF(2^8) with the polynomial 0x11D.
func reedSolomon(data []byte, n int) []byte {
	generator := make([]byte, n) // without its leading 1
	generator[n-1] = 1
	for root := byte(1); n > 0; n-- {
		for j := range generator {
			generator[j] = gfMultiply(generator[j], root)
			if j+1 < len(generator) {
				generator[j] ^= generator[j+1]
			}
		}
		root = gfMultiply(root, 2)
	}
	check := make([]byte, len(generator))
	for _, b := range data {
		factor := b ^ check[0]
		copy(check, check[1:])
		check[len(check)-1] = 0
		for j := range check {
			check[j] ^= gfMultiply(generator[j], factor)
		}
	}
	return check
}

func gfMultiply(a, b byte) byte {
	product := 0
	for i := 7; i >= 0; i-- {
		product = product<<1 ^ product>>7*0x11D ^ int(b>>i&1)*int(a)
	}
	return byte(product)
}

// qr is the modules of a code. Those that are set hold no data.
type qr struct {
	size      int
	dark, set [][]bool
}

func newQR(version int) *qr {
	q := &qr{size: 17 + 4*version}
	for range q.size {
		q.dark, q.set = append(q.dark, make([]bool, q.size)), append(q.set, make([]bool, q.size))
	}
	for i := range q.size { // timing
		q.put(6, i, i%2 == 0)
		q.put(i, 6, i%2 == 0)
	}
	for _, corner := range [][2]int{{3, 3}, {3, q.size - 4}, {q.size - 4, 3}} { // finders and what separates them
		for r := -4; r <= 4; r++ {
			for c := -4; c <= 4; c++ {
				ring := max(r, -r, c, -c)
				q.put(corner[0]+r, corner[1]+c, ring != 2 && ring != 4)
			}
		}
	}
	align := qrVersions[version-1].align
	for i, row := range align {
		for j, col := range align {
			last := len(align) - 1
			if i == 0 && j == 0 || i == 0 && j == last || i == last && j == 0 { // a finder is there
				continue
			}
			for r := -2; r <= 2; r++ {
				for c := -2; c <= 2; c++ {
					q.put(row+r, col+c, max(r, -r, c, -c) != 1)
				}
			}
		}
	}
	if version >= 7 {
		code := bch(version, 12, 0x1F25)
		for i := range 18 {
			q.put(q.size-11+i%3, i/3, code>>i&1 == 1)
			q.put(i/3, q.size-11+i%3, code>>i&1 == 1)
		}
	}
	// Error correction M and mask 0 are five zeros. Any mask is valid, and for
	// a secret, which is random, one is as good as another.
	format := bch(0, 10, 0x537) ^ 0x5412
	for i := range 15 {
		bit := format>>i&1 == 1
		switch {
		case i < 6:
			q.put(i, 8, bit)
		case i < 8:
			q.put(i+1, 8, bit)
		case i == 8:
			q.put(8, 7, bit)
		default:
			q.put(8, 14-i, bit)
		}
		if i < 8 {
			q.put(8, q.size-1-i, bit)
		} else {
			q.put(q.size-15+i, 8, bit)
		}
	}
	q.put(q.size-8, 8, true)
	return q
}

// bch appends n check bits to a value.
func bch(value, n, generator int) int {
	rest := value << n
	for i := 17; i >= n; i-- {
		if rest>>i&1 == 1 {
			rest ^= generator << (i - n)
		}
	}
	return value<<n | rest
}

func (q *qr) put(row, col int, dark bool) {
	if 0 <= row && row < q.size && 0 <= col && col < q.size {
		q.dark[row][col], q.set[row][col] = dark, true
	}
}

// draw goes up and down in columns of two, from the right.
func (q *qr) draw(codewords []byte) (rows []string) {
	i := 0
	for right := q.size - 1; right > 0; right -= 2 {
		if right == 6 { // timing
			right--
		}
		for step := range q.size {
			row := step
			if (right+1)&2 == 0 {
				row = q.size - 1 - step
			}
			for _, col := range []int{right, right - 1} {
				if q.set[row][col] {
					continue
				}
				bit := i < 8*len(codewords) && codewords[i/8]>>(7-i%8)&1 == 1
				q.dark[row][col] = bit != ((row+col)%2 == 0)
				i++
			}
		}
	}
	for _, line := range q.dark {
		row := make([]byte, q.size)
		for col, dark := range line {
			if row[col] = '0'; dark {
				row[col] = '1'
			}
		}
		rows = append(rows, string(row))
	}
	return rows
}
