package controller

// A Reserver has what the controllers of a Driver share: the kernel's host
// controllers. It can give one of these to a controller alone.
type Reserver interface {
	// Reserve gives the controller of an index one that nothing uses: the kernel's
	// vhci_hcd.N, where N is kernel, with hubPorts ports of each half. From then on
	// the driver attaches nothing there but that controller's plugs, and these
	// nowhere else.
	Reserve(index int) (kernel, hubPorts int, err error)

	// Keep is Reserve for what an earlier process had reserved. It comes before
	// any Restore.
	Keep(index, kernel int) error

	// Release ends either, if there was one. Nothing is attached there any more.
	Release(index int)

	// RootHubs returns the directories in sysfs of both root hubs of what is
	// reserved for the controller of an index.
	RootHubs(index int) ([]string, error)
}

// reserveKernel fills in what an exclusive controller has.
func (c *Controller) reserveKernel() (err error) {
	if c.cfg.Exclusive != nil {
		c.cfg.Kernel, c.cfg.HubPorts, err = c.cfg.Exclusive.Reserve(c.index)
	}
	return err
}

func (c *Controller) releaseKernel() {
	if c.cfg.Exclusive != nil {
		c.cfg.Exclusive.Release(c.index)
	}
}

// RootHubs returns the directories in the kernel's sysfs of both root hubs of an
// exclusive controller. Others have none of their own.
func (c *Controller) RootHubs() ([]string, error) {
	if c.cfg.Exclusive == nil {
		return nil, nil
	}
	return c.cfg.Exclusive.RootHubs(c.index)
}
