package controller

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/policy"
)

func TestIndexesLowestFirst(t *testing.T) {
	var table Table
	cfg := Config{Driver: &User{}}
	create := func(count int, want ...int) {
		t.Helper()
		made, err := table.Create(cfg, count)
		must.OK(t, err)
		for i, c := range made {
			if c.Index() != want[i] || table.Controller(want[i]) != c {
				t.Errorf("controller %d of %d has index %d, want %d", i, count, c.Index(), want[i])
			}
		}
	}
	create(4, 0, 1, 2, 3)
	must.OK(t, table.Delete(table.Controller(2)))
	must.OK(t, table.Delete(table.Controller(0)))
	create(3, 0, 2, 4)
	for i, c := range table.All() {
		if c.Index() != i {
			t.Errorf("controller %d is at %d of all", c.Index(), i)
		}
	}
	for _, index := range []int{-1, 5} {
		if table.Controller(index) != nil {
			t.Errorf("there is a controller %d", index)
		}
	}
	last := table.Controller(4)
	must.OK(t, table.Delete(last))
	create(1, 4)
	wantErrno(t, table.Delete(last), syscall.ENOENT)
	if table.Controller(4) == nil {
		t.Error("the controller that came to the index of a deleted one was deleted in its place")
	}
	table.Close()
	if n := len(table.All()); n != 0 {
		t.Errorf("%d controllers after Close", n)
	}
}

func TestNames(t *testing.T) {
	var table Table
	made, err := table.Create(Config{Name: "c1", Driver: &User{}}, 1)
	must.OK(t, err)
	if table.ByName("c1") != made[0] || made[0].String() != "c1" || table.ByName("c2") != nil {
		t.Error("not found by its name")
	}
	_, err = table.Create(Config{Name: "c1", Driver: &User{}}, 1)
	wantErrno(t, err, syscall.EEXIST)
	must.OK(t, table.Delete(table.Controller(0)))
	if table.ByName("c1") != nil {
		t.Error("found by its name after Delete")
	}
	made, err = table.Create(Config{Driver: &User{}, Policy: policy.Open()}, 1)
	must.OK(t, err)
	if s := made[0].String(); s != "vhci_hcd.0" {
		t.Errorf("without a name it is %q", s)
	}
	if got := made[0].Config().HubPorts; got != DefaultHubPorts {
		t.Errorf("%d ports by default", got)
	}
}

func TestBadConfig(t *testing.T) {
	user := &User{}
	for name, tt := range map[string]struct {
		cfg   Config
		count int
		want  syscall.Errno
	}{
		"no controllers":     {Config{Driver: user}, 0, syscall.EINVAL},
		"negative count":     {Config{Driver: user}, -1, syscall.EINVAL},
		"too many":           {Config{Driver: user}, MaxControllers + 1, syscall.ENOSPC},
		"no driver":          {Config{}, 1, syscall.EINVAL},
		"negative ports":     {Config{Driver: user, HubPorts: -1}, 1, syscall.EINVAL},
		"too many ports":     {Config{Driver: user, HubPorts: 16}, 1, syscall.EINVAL},
		"a name for two":     {Config{Driver: user, Name: "a"}, 2, syscall.EINVAL},
		"path as a name":     {Config{Driver: user, Name: "../a"}, 1, syscall.EINVAL},
		"slash in a name":    {Config{Driver: user, Name: "a/b"}, 1, syscall.EINVAL},
		"line end in a name": {Config{Driver: user, Name: "a\n"}, 1, syscall.EINVAL},
		"dash before a name": {Config{Driver: user, Name: "-a"}, 1, syscall.EINVAL},
		"number as a name":   {Config{Driver: user, Name: "7"}, 1, syscall.EINVAL},
		"name that is long":  {Config{Driver: user, Name: strings.Repeat("a", MaxNameLength+1)}, 1, syscall.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			var table Table
			_, err := table.Create(tt.cfg, tt.count)
			wantErrno(t, err, tt.want)
			if len(table.All()) != 0 {
				t.Error("something was made")
			}
		})
	}
}

// An index is used again, a serial number is not.
func TestSerial(t *testing.T) {
	var table Table
	seen := map[uint64]bool{0: true}
	for range 3 {
		made, err := table.Create(Config{Driver: &User{}, Policy: policy.Open()}, 2)
		must.OK(t, err)
		for _, c := range made {
			if seen[c.Serial()] {
				t.Errorf("serial number %d is used again", c.Serial())
			}
			seen[c.Serial()] = true
		}
		must.OK(t, table.Delete(made[0]))
	}
}

func TestDeleteDetachesAll(t *testing.T) {
	must.NotLeak(t)
	var table Table
	made, err := table.Create(Config{Driver: &User{}, Policy: policy.Open()}, 1)
	must.OK(t, err)
	for port := range 3 {
		plug, _ := export(t, newScanner(t, 0))
		_, err := made[0].Attach(t.Context(), port, plug)
		must.OK(t, err)
	}
	dev := made[0].Device(2)
	must.OK(t, table.Delete(table.Controller(0)))
	<-dev.Gone()
	wantStatus(t, made[0], idle(DefaultHubPorts))
}

func TestTableConcurrently(t *testing.T) {
	must.NotLeak(t)
	var table Table
	var wg sync.WaitGroup
	for i := range 4 {
		name := fmt.Sprint("c", i)
		wg.Go(func() {
			for range 50 {
				made, err := table.Create(Config{Name: name, Driver: &User{}}, 1)
				if err != nil {
					t.Error(err)
					return
				}
				if table.ByName(name) != made[0] || table.Controller(made[0].Index()) != made[0] {
					t.Errorf("%s is not in the table", name)
				}
				table.All()
				if err := table.Delete(made[0]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	made, err := table.Create(Config{Driver: &User{}, Policy: policy.Open()}, 1)
	must.OK(t, err)
	if made[0].Index() != 0 {
		t.Errorf("index %d in an empty table", made[0].Index())
	}
}

const many = 10_000

func TestManyControllers(t *testing.T) {
	var table Table
	made, err := table.Create(Config{Driver: &User{}}, many)
	must.OK(t, err)
	for i, c := range made {
		if c.Index() != i || table.Controller(i) != c {
			t.Fatalf("controller %d is not at its index", i)
		}
	}
	wantStatus(t, made[many-1], idle(DefaultHubPorts))
	table.Close()
}

func TestEmptyControllersAllocate(t *testing.T) {
	if n := testing.AllocsPerRun(10, func() {
		var table Table
		table.Create(Config{Driver: &User{}}, 1000)
	}); n > 1100 {
		t.Errorf("%v allocations for 1000 controllers", n)
	}
}

func TestStatusDoesNotAllocate(t *testing.T) {
	c, _ := newController(t, &User{})
	_, err := c.Attach(t.Context(), 0, Plug{Device: newScanner(t, 0)})
	must.OK(t, err)
	buf := c.AppendStatus(nil)
	if n := testing.AllocsPerRun(100, func() { buf = c.AppendStatus(buf[:0]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEmptyController(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var table Table
	for range b.N {
		if _, err := table.Create(Config{Driver: &User{}}, many); err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.StopTimer()
		table.Close()
		b.StartTimer()
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/many, "B/controller")
}

func BenchmarkStatus(b *testing.B) {
	for _, n := range []int{10, many} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var table Table
			_, err := table.Create(Config{Driver: &User{}}, n)
			must.OK(b, err)
			var buf []byte
			for i := 0; b.Loop(); i++ {
				buf = table.Controller(i % n).AppendStatus(buf[:0])
			}
		})
	}
}
