package vhci

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/usbns/usbns/usb"
)

func anyGeometry(t *rapid.T) Geometry {
	return Geometry{
		Controllers: rapid.IntRange(1, MaxControllers).Draw(t, "controllers"),
		HubPorts:    rapid.IntRange(1, MaxHubPorts).Draw(t, "ports of a hub"),
	}
}

// n*2P + i, and n*2P + P + i for super speed.
func TestPortNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := anyGeometry(t)
		n := rapid.IntRange(0, g.Controllers-1).Draw(t, "controller")
		i := rapid.IntRange(0, g.HubPorts-1).Draw(t, "index")
		p := g.HubPorts
		for hub, want := range [...]int{HubHigh: n*2*p + i, HubSuper: n*2*p + p + i} {
			place := Place{Controller: n, Hub: Hub(hub), Index: i}
			if got := g.Number(place); got != want {
				t.Errorf("%+v has number %d, want %d", place, got, want)
			}
			if got, ok := g.Place(want); !ok || got != place {
				t.Errorf("port %d is at %+v, %v; want %+v", want, got, ok, place)
			}
		}
	})
}

func TestEveryPortHasOnePlace(t *testing.T) {
	g := Geometry{Controllers: 3, HubPorts: 2}
	if g.Ports() != 12 {
		t.Fatalf("%d ports, want 12", g.Ports())
	}
	seen := make(map[Place]int)
	for port := range g.Ports() {
		place, ok := g.Place(port)
		if first, twice := seen[place]; !ok || twice {
			t.Errorf("port %d is at %+v, %v, where port %d is", port, place, ok, first)
		}
		seen[place] = port
	}
	for _, port := range []int{-1, 12, 1 << 40} {
		if place, ok := g.Place(port); ok {
			t.Errorf("port %d, which does not exist, is at %+v", port, place)
		}
		if landing, ok := g.Landing(port, usb.SpeedHigh); ok {
			t.Errorf("port %d, which does not exist, lands on %d", port, landing)
		}
	}
}

func TestLanding(t *testing.T) {
	g := Geometry{Controllers: 2, HubPorts: 15}
	for _, tt := range []struct {
		port  int
		speed usb.Speed
		want  int
	}{
		{0, usb.SpeedHigh, 0},
		{0, usb.SpeedSuper, 15},
		{17, usb.SpeedLow, 2},
		{17, usb.SpeedSuperPlus, 17},
		{30, usb.SpeedSuper, 45},
		{59, usb.SpeedFull, 44},
		{59, usb.SpeedWireless, 44},
	} {
		if got, ok := g.Landing(tt.port, tt.speed); !ok || got != tt.want {
			t.Errorf("%s speed attached to port %d lands on %d, %v; want %d", tt.speed, tt.port, got, ok, tt.want)
		}
	}
}
