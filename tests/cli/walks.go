// The walks of sev_client.c and kvm_client.c in Go, with raw system calls and no C library: "walks sev", "walks kvm".
// The numbers and structures are written down here once more, from the kernel's header.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"
)

const (
	issueCmd  = 0xC0105300
	encryptOp = 0xC008AEBA
	regRegion = 0x8010AEBB
	unRegion  = 0x8010AEBC
	slot      = 0x4020AE46
	page      = 4096
	size      = 16 * page
)

var le = binary.LittleEndian
var sev, kvm, vm uintptr

// One mapping outside the runtime's own memory: nothing in it moves, and it ends where we say.
var arena []byte
var used int

func room(length int) []byte {
	at := used
	used += (length + 63) &^ 63
	return arena[at : at+length : at+length]
}

func address(data []byte) uint64 {
	if data == nil {
		return 0
	}
	return uint64(uintptr(unsafe.Pointer(&data[0])))
}

func ioctl(fd uintptr, request uintptr, argument uint64) (uintptr, syscall.Errno) {
	result, _, failed := syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(argument))
	return result, failed
}

func name(failed syscall.Errno) string {
	names := map[syscall.Errno]string{0: "ok", syscall.EIO: "EIO", syscall.EINVAL: "EINVAL", syscall.EFAULT: "EFAULT",
		syscall.EBADF: "EBADF", syscall.ENOTTY: "ENOTTY", syscall.ENOMEM: "ENOMEM", syscall.EPERM: "EPERM"}
	if text, known := names[failed]; known {
		return text
	}
	return failed.Error()
}

// fields puts 32-bit and 64-bit words one after another.
func fields(words ...interface{}) []byte {
	var text bytes.Buffer
	for _, word := range words {
		binary.Write(&text, le, word)
	}
	data := room(text.Len())
	copy(data, text.Bytes())
	return data
}

func u32(value int) uint32 { return uint32(value) }

// ---- /dev/sev ----

func issue(what string, command uint32, data uint64) syscall.Errno {
	it := fields(command, data, u32(99))
	_, failed := ioctl(sev, issueCmd, address(it))
	fmt.Printf("%s: %s, error %d", what, name(failed), le.Uint32(it[12:]))
	return failed
}

func plain(what string, command uint32, data uint64) {
	issue(what, command, data)
	fmt.Println()
}

func status() {
	it := room(12)
	issue("status", 1, address(it))
	fmt.Printf(", API %d.%d, build %d, state %d, flags %s, guests %d\n",
		it[0], it[1], it[7], it[2], hex(le.Uint32(it[3:])), le.Uint32(it[8:]))
}

// hex is C's %#x: zero has no prefix.
func hex(value uint32) string {
	if value == 0 {
		return "0"
	}
	return fmt.Sprintf("%#x", value)
}

func export(pdhLen, chainLen uint32) {
	pdh, chain := room(0x8000), room(0x8000)
	it := fields(address(pdh), pdhLen, address(chain), chainLen)
	issue("export", 5, address(it))
	fmt.Printf(", PDH %s, chain %s, version %d and %d\n", hex(le.Uint32(it[8:])), hex(le.Uint32(it[20:])), pdh[0], chain[0])
}

func csr(length uint32) {
	cert := room(0x4000)
	it := fields(address(cert), length)
	issue("csr", 3, address(it))
	unused := 0
	if cert[0x414] == 0 && cert[0x415] == 0x10 && cert[0x61c] == 0 && cert[0x61d] == 0x10 {
		unused = 1
	}
	fmt.Printf(", length %s, version %d, slots unused %d\n", hex(le.Uint32(it[8:])), cert[0], unused)
}

func ids() {
	both, one := room(128), room(64)
	it := fields(uint64(0), uint32(0))
	plain("id", 7, address(both))
	issue("id2 asked", 8, address(it))
	fmt.Printf(", length %d\n", le.Uint32(it[8:]))
	le.PutUint64(it, address(one))
	issue("id2", 8, address(it))
	same := 0
	if bytes.Equal(one, both[:64]) {
		same = 1
	}
	fmt.Printf(", length %d, same %d, second socket %d\n", le.Uint32(it[8:]), same, both[64])
}

func walkSev() {
	text, failed := os.ReadFile("/sys/module/kvm_amd/parameters/sev")
	if failed != nil {
		fmt.Println(failed)
		os.Exit(1)
	}
	fmt.Printf("parameter sev: %.1s\n", text)
	status()
	ids()
	status()
	export(0, 0)
	status()
	export(0x824, 0x186c)
	export(0x824, 0x186b)
	export(0x4001, 0x186c)
	csr(0)
	csr(0x823)
	csr(0x4000)
	plain("new PDH", 4, 0)
	plain("new PEK", 2, 0)
	cert := room(0x824)
	cert[0] = 1
	plain("import of nonsense", 6, address(fields(address(cert), u32(0x824), address(cert), u32(0x824))))
	plain("import of too much", 6, address(fields(address(cert), u32(0x4001), address(cert), u32(0x824))))
	four := address(room(64))
	plain("snp status", 9, four)
	plain("snp commit", 10, 0)
	plain("snp config", 11, four)
	plain("snp vlek", 12, four)
	plain("out of range", 13, 0)
	plain("bad pointer", 1, 8)
	plain("reset", 0, 0)
	status()
}

// ---- /dev/kvm ----

func opWith(what string, id uint32, data uint64, sevFd uintptr) {
	it := fields(id, uint32(0), data, u32(99), uint32(sevFd))
	_, failed := ioctl(vm, encryptOp, address(it))
	fmt.Printf("%s: %s, error %d\n", what, name(failed), le.Uint32(it[16:]))
}

func op(what string, id uint32, data []byte) { opWith(what, id, address(data), sev) }

func guests() uint32 {
	it := room(12)
	if _, failed := ioctl(sev, issueCmd, address(fields(uint32(1), address(it), uint32(0)))); failed != 0 {
		return 999
	}
	return le.Uint32(it[8:])
}

func said(what string, failed syscall.Errno) { fmt.Printf("%s: %s\n", what, name(failed)) }

func update(what string, at uint64, length uint32) { op(what, 3, fields(at, length, uint32(0))) }

func guest() {
	it := room(12)
	op("guest", 16, it)
	there := 0
	if le.Uint32(it) != 0 {
		there = 1
	}
	fmt.Printf("  state %d, policy %s, handle %d\n", le.Uint32(it[8:]), hex(le.Uint32(it[4:])), there)
}

func measure(what string, at uint64, length uint32) {
	it := fields(at, length, uint32(0))
	op(what, 6, it)
	fmt.Printf("  length %d\n", le.Uint32(it[8:]))
}

func region(what string, request uintptr, at uint64, length uint64) {
	_, failed := ioctl(vm, request, address(fields(at, length)))
	said(what, failed)
}

func create(memory []byte) {
	made, failed := ioctl(kvm, 0xAE01, 0)
	vm = made
	said("machine", failed)
	_, failed = ioctl(vm, slot, address(fields(uint32(0), uint32(0), uint64(0), uint64(size), address(memory))))
	said("memory", failed)
}

func debug(what string, id uint32, from, to []byte) {
	op(what, id, fields(address(from), address(to), uint32(32), uint32(0)))
}

func same(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

func walkKvm(memory []byte) {
	start := room(40)
	version, _ := ioctl(kvm, 0xAE00, 0)
	fmt.Println("version", version)
	create(memory)
	_, failed := ioctl(vm, encryptOp, 0)
	said("probe", failed)
	op("start too early", 2, start)
	op("no such sub-command", 99, nil)
	op("init", 0, nil)
	op("init again", 0, nil)
	_, failed = ioctl(vm, 0xAE41, 0)
	said("processor", failed)
	region("region", regRegion, address(memory), size)
	region("no region", regRegion, address(memory), 0)
	region("another region back", unRegion, address(memory), page)
	opWith("start at a bad address", 2, 8, sev)
	le.PutUint32(start[4:], 0x100)
	op("start, policy of tomorrow", 2, start)
	le.PutUint32(start[4:], 0)
	opWith("start without /dev/sev", 2, address(start), 99)
	opWith("start with another file", 2, address(start), kvm)
	op("start", 2, start)
	guest()
	for i := 0; i < 2*page; i++ {
		memory[i] = byte(i / 16)
	}
	was := append([]byte{}, memory[:2*page]...)
	update("update", address(memory), 2*page)
	fmt.Println("  pages changed", same(!bytes.Equal(was, memory[:2*page])))
	update("update of part of a block", address(memory[2*page:]), 8)
	update("update of nothing", address(memory), 0)
	update("update at a bad address", page, page)
	measure("measure asked", 0, 0)
	measure("measure", address(room(48)), 48)
	update("update too late", address(memory[3*page:]), page)
	header, packet := address(room(52)), address(room(16))
	zero := uint32(0)
	op("secret of nobody", 5, fields(header, u32(52), zero, address(memory[3*page:]), u32(16), zero, packet, u32(16), zero))
	op("finish", 7, nil)
	op("finish again", 7, nil)
	guest()
	report := room(32)
	op("report asked", 20, report)
	fmt.Println("  length", le.Uint32(report[24:]))
	seen, text := room(32), room(32)
	copy(text, "sixteen letters.sixteen numbers.")
	debug("decrypt", 17, memory[64:], seen)
	fmt.Println("  as it was", same(bytes.Equal(seen, was[64:96])))
	debug("encrypt", 18, text, memory[128:])
	debug("decrypt", 17, memory[128:], seen)
	fmt.Println("  as it was written", same(bytes.Equal(seen, text)))
	region("region back", unRegion, address(memory), size)
	fmt.Println("guests", guests())
	syscall.Close(int(vm))
	create(memory)
	left := guests()
	for i := 0; i < 1000 && left != 0; i++ {
		time.Sleep(time.Millisecond)
		used -= 128 // what asking took
		left = guests()
	}
	fmt.Println("guests", left)
	op("init", 0, nil)
	op("start, sharing with nobody", 2, start)
	le.PutUint32(start, 0)
	op("start", 2, start)
	fmt.Println("guests", guests())
}

func open(path string) uintptr {
	fd, failed := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if failed != nil {
		fmt.Println(path, failed)
		os.Exit(1)
	}
	return uintptr(fd)
}

func anonymous(length int) []byte {
	mapping, failed := syscall.Mmap(-1, 0, length, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if failed != nil {
		panic(failed)
	}
	return mapping
}

func main() {
	arena = anonymous(4 << 20)
	sev = open("/dev/sev")
	if os.Args[1] == "sev" {
		walkSev()
	} else {
		kvm = open("/dev/kvm")
		walkKvm(anonymous(size))
	}
	os.Exit(42)
}
