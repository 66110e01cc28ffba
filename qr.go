// qr.go: a QR code (ISO/IEC 18004) for the address of an authenticator app:
// bytes only, error correction M, versions 1 to 10, which is 213 bytes.
package main

const maxQR = 213 // bytes

// qrVersions has, for each version, the error correction codewords of a block,
// how many blocks there are, the data codewords of the first, how many of the
// last have one more, and the version with its check bits, which is drawn from
// the seventh on.
var qrVersions = []struct{ ecc, blocks, data, longer, bits int }{
	{10, 1, 16, 0, 0}, {16, 1, 28, 0, 0}, {26, 1, 44, 0, 0}, {18, 2, 32, 0, 0}, {24, 2, 43, 0, 0}, {16, 4, 27, 0, 0},
	{18, 4, 31, 0, 0x07C94}, {22, 4, 38, 2, 0x085BC}, {22, 5, 36, 2, 0x09A99}, {26, 5, 43, 1, 0x0A4D3},
}

// qrFormat is error correction M and mask 0, with check bits. Any mask is valid,
// and for a secret, which is random, one is as good as another.
const qrFormat = 0x5412

// qrCode returns the rows of the code, '1' for dark, or nil for a text that is
// too long. Around it belong four modules of white.
func qrCode(text string) []string {
	for version := 1; version <= len(qrVersions); version++ {
		if codewords := qrData(text, version); codewords != nil {
			return newQR(version).draw(codewords)
		}
	}
	return nil
}

// qrData returns the codewords in the order in which they are drawn, or nil
// where the version is too small.
func qrData(text string, version int) (drawn []byte) {
	v := qrVersions[version-1]
	room := v.blocks*v.data + v.longer
	// Four bits say that bytes follow, 8 or 16 how many, and four zeros end them:
	// all is shifted by four bits.
	head := []byte{0x40 | byte(len(text)>>4)}
	if version >= 10 {
		head = []byte{0x40 | byte(len(text)>>12), byte(len(text) >> 4)}
	}
	if len(head)+len(text)+1 > room {
		return nil
	}
	data, last := head, byte(len(text))
	for _, b := range []byte(text) {
		data, last = append(data, last<<4|b>>4), b
	}
	data = append(data, last<<4)
	for pad := byte(0xEC); len(data) < room; pad ^= 0xEC ^ 0x11 {
		data = append(data, pad)
	}
	var blocks, checks [][]byte
	for i := range v.blocks {
		n := v.data
		if i >= v.blocks-v.longer {
			n++
		}
		blocks, checks, data = append(blocks, data[:n]), append(checks, reedSolomon(data[:n], v.ecc)), data[n:]
	}
	for _, list := range [][][]byte{blocks, checks} { // the first byte of each, then the second
		for i := range list[len(list)-1] {
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
	root := byte(1)
	for range n {
		for j := range generator {
			generator[j] = gfMultiply(generator[j], root)
			if j+1 < n {
				generator[j] ^= generator[j+1]
			}
		}
		root = gfMultiply(root, 2)
	}
	check := make([]byte, n)
	for _, b := range data {
		factor := b ^ check[0]
		check = append(check[1:], 0)
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

// qr is the rows of a code: '1', '0', and 0 where the data will be.
type qr [][]byte

func newQR(version int) qr {
	size := 17 + 4*version
	q := make(qr, size)
	for i := range q {
		q[i] = make([]byte, size)
	}
	for i := range q { // timing
		q.put(6, i, i%2 == 0)
		q.put(i, 6, i%2 == 0)
	}
	q.square(3, 3, 4) // finders and what separates them
	q.square(3, size-4, 4)
	q.square(size-4, 3, 4)
	mid, last := 8+2*version, size-7
	if version > 1 { // alignment
		q.square(last, last, 2)
	}
	if version >= 7 {
		for _, at := range [][2]int{{6, mid}, {mid, 6}, {mid, mid}, {mid, last}, {last, mid}} {
			q.square(at[0], at[1], 2)
		}
		for i := range 18 {
			dark := qrVersions[version-1].bits>>i&1 == 1
			q.put(size-11+i%3, i/3, dark)
			q.put(i/3, size-11+i%3, dark)
		}
	}
	for i, row := range []int{0, 1, 2, 3, 4, 5, 7, 8, 8, 8, 8, 8, 8, 8, 8} {
		col := []int{8, 8, 8, 8, 8, 8, 8, 8, 7, 5, 4, 3, 2, 1, 0}[i]
		dark := qrFormat>>i&1 == 1
		q.put(row, col, dark)
		if i < 8 { // and once more, along the other finders
			q.put(8, size-1-i, dark)
		} else {
			q.put(size-15+i, 8, dark)
		}
	}
	q.put(size-8, 8, true)
	return q
}

func (q qr) put(row, col int, dark bool) {
	if 0 <= row && row < len(q) && 0 <= col && col < len(q) {
		q[row][col] = '0'
		if dark {
			q[row][col] = '1'
		}
	}
}

// square draws rings around a module, of which one is light, and the outmost of
// a finder, which has four.
func (q qr) square(row, col, rings int) {
	for r := -rings; r <= rings; r++ {
		for c := -rings; c <= rings; c++ {
			ring := max(r, -r, c, -c)
			q.put(row+r, col+c, ring != rings/2 && ring != 4)
		}
	}
}

// draw fills in the data, up and down in columns of two from the right, and
// returns all rows.
func (q qr) draw(codewords []byte) (rows []string) {
	i := 0
	for right := len(q) - 1; right > 0; right -= 2 {
		if right == 6 { // timing
			right--
		}
		for step := range q {
			row := step
			if (right+1)&2 == 0 {
				row = len(q) - 1 - step
			}
			for col := right; col >= right-1; col-- {
				if q[row][col] == 0 {
					bit := i < 8*len(codewords) && codewords[i/8]>>(7-i%8)&1 == 1
					q.put(row, col, bit != ((row+col)%2 == 0))
					i++
				}
			}
		}
	}
	for _, row := range q {
		rows = append(rows, string(row))
	}
	return rows
}
