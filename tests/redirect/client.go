// A program in Go, whose runtime sends its threads signals while they wait in raw system calls.
package main

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

const workers = 8

// What a command points at: global, because the runtime moves what lies on its stacks.
var data [workers + 1][24]byte
var commands [workers + 1][16]byte

func echo(fd uintptr, worker int) bool {
	room, command := &data[worker], &commands[worker]
	copy(room[:], "sixteen bytes :)")
	command[0] = 1
	*(*uint64)(unsafe.Pointer(&command[4])) = uint64(uintptr(unsafe.Pointer(room)))
	_, _, failed := syscall.Syscall(syscall.SYS_IOCTL, fd, 0xC0105300, uintptr(unsafe.Pointer(command)))
	return failed == 0 && room[0] == 's'^0xFF
}

func main() {
	file, failed := os.OpenFile("/dev/sev", os.O_RDWR, 0)
	if failed != nil {
		fmt.Println(failed)
		os.Exit(1)
	}
	text, failed := os.ReadFile("/sys/module/kvm_amd/parameters/sev")
	fmt.Printf("%q %v\n", text, failed)
	_, failed = os.Stat("/dev/sev")
	fmt.Println("stat:", failed)
	fd := file.Fd()
	fmt.Println("echo:", echo(fd, workers))
	var stop, bad int32
	go func() { // busy: the scheduler preempts it by signals
		for n := 0; atomic.LoadInt32(&stop) == 0; n++ {
		}
	}()
	var all sync.WaitGroup
	for i := 0; i < workers; i++ {
		all.Add(1)
		go func(worker int) {
			defer all.Done()
			for j := 0; j < 500; j++ {
				if !echo(fd, worker) {
					atomic.AddInt32(&bad, 1)
				}
			}
		}(i)
	}
	all.Wait()
	atomic.StoreInt32(&stop, 1)
	fmt.Println("8 times 500:", bad, "bad")
}
