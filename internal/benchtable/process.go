//go:build linux

package benchtable

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Serve is what a server does with its one connection.
type Serve func(conn net.Conn) error

// Pin keeps this process on the second CPU, and on one thread of Go code, until
// the benchmark is over.
func Pin(b *testing.B) {
	b.Helper()
	all, err := cpus()
	if err != nil {
		b.Skip(err)
	}
	if all.Count() < 2 {
		b.Skip("needs two CPUs")
	}
	if err := moveTo(nth(all, 1)); err != nil {
		b.Fatal(err)
	}
	procs := runtime.GOMAXPROCS(1)
	b.Cleanup(func() {
		runtime.GOMAXPROCS(procs)
		if err := moveTo(all); err != nil {
			b.Error(err)
		}
	})
}

// cpus returns those this process may use, were it not pinned.
func cpus() (set unix.CPUSet, err error) {
	for cpu := range 8 * int(unsafe.Sizeof(set)) {
		set.Set(cpu)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return set, os.NewSyscallError("sched_setaffinity", err)
	}
	err = unix.SchedGetaffinity(0, &set)
	return set, os.NewSyscallError("sched_getaffinity", err)
}

// nth returns the nth CPU of a set, from 0 on.
func nth(set unix.CPUSet, n int) (one unix.CPUSet) {
	for cpu := 0; ; cpu++ {
		if !set.IsSet(cpu) {
			continue
		}
		if n == 0 {
			one.Set(cpu)
			return one
		}
		n--
	}
}

// moveTo moves all threads of this process. Those to come follow the one that
// starts them.
func moveTo(set unix.CPUSet) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(tid, &set); err != nil && err != unix.ESRCH {
			return os.NewSyscallError("sched_setaffinity", err)
		}
	}
	return nil
}

// Server starts this program as the server of that name, one of those given to
// [Main], on the first CPU, and connects to it over loopback. It ends with the
// benchmark.
func Server(b *testing.B, name string) net.Conn {
	b.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = name
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("server %s does not listen: %v", name, err)
	}
	conn, err := net.Dial("tcp", strings.TrimSpace(addr))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return conn
}

// orphaned is when a server takes it that nobody will come.
const orphaned = 30 * time.Second

func beServer(serve Serve) error {
	all, err := cpus()
	if err != nil {
		return err
	}
	if err := moveTo(nth(all, 0)); err != nil {
		return err
	}
	runtime.GOMAXPROCS(1)
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	l.SetDeadline(time.Now().Add(orphaned))
	fmt.Println(l.Addr())
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	return serve(conn)
}
