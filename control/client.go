//go:build linux

package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/usbns/usbns/container"
)

// A Client talks to the daemon of a run directory. It is safe for concurrent
// use.
type Client struct {
	dir  string
	http http.Client
}

// NewClient returns a client of the daemon whose run directory is dir. It
// connects when it is used.
func NewClient(dir string) *Client {
	c := &Client{dir: dir}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dial(ctx, "unix", filepath.Join(dir, Socket))
		},
		DisableKeepAlives: true,
	}
	return c
}

func dial(ctx context.Context, network, path string) (*net.UnixConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, path)
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err // the rest says the path again
	}
	if err != nil {
		return nil, &DialError{path, err}
	}
	return conn.(*net.UnixConn), nil
}

// Controllers returns all controllers in the order of their indexes.
func (c *Client) Controllers(ctx context.Context) (list []Controller, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/controllers", nil, &list)
	return list, err
}

// Controller returns the controller of an index or a name.
func (c *Client) Controller(ctx context.Context, ref string) (one Controller, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/controllers/"+url.PathEscape(ref), nil, &one)
	return one, err
}

// Create makes controllers, all or none.
func (c *Client) Create(ctx context.Context, r Create) (made []Controller, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/controllers", r, &made)
	return made, err
}

// Delete removes a controller and detaches what is attached to it.
func (c *Client) Delete(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, "/v1/controllers/"+url.PathEscape(ref), nil, nil)
}

// Enter gives a controller to a container, which is covered and none of whose
// programs runs yet. When it returns the container has the controller's files.
func (c *Client) Enter(ctx context.Context, ref string, in Container) error {
	return c.call(ctx, http.MethodPut, "/v1/controllers/"+url.PathEscape(ref)+"/container", in, nil)
}

// Container returns whose a controller is, an [Error] of ENOENT if no container
// has it.
func (c *Client) Container(ctx context.Context, ref string) (in Container, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/controllers/"+url.PathEscape(ref)+"/container", nil, &in)
	return in, err
}

// Leave takes a controller back from the container that it was given to with pid,
// which has ended, and detaches what is attached. If another container has the
// controller, or none, nothing is done.
func (c *Client) Leave(ctx context.Context, ref string, pid int) error {
	return c.call(ctx, http.MethodDelete, "/v1/controllers/"+url.PathEscape(ref)+"/container?pid="+strconv.Itoa(pid), nil, nil)
}

// Ports returns the ports of a controller in the order of their numbers.
func (c *Client) Ports(ctx context.Context, ref string) (ports []Port, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/controllers/"+url.PathEscape(ref)+"/ports", nil, &ports)
	return ports, err
}

// Detach ends what is attached to a port.
func (c *Client) Detach(ctx context.Context, ref string, port int) error {
	return c.call(ctx, http.MethodDelete, "/v1/controllers/"+url.PathEscape(ref)+"/ports/"+strconv.Itoa(port), nil, nil)
}

// Transfer makes a transfer to the device on a port of a controller. It is
// cancelled with ctx.
func (c *Client) Transfer(ctx context.Context, ref string, port int, t Transfer) (done Transferred, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/controllers/"+url.PathEscape(ref)+"/ports/"+strconv.Itoa(port)+"/transfer", t, &done)
	return done, err
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://usbns"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return plain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return refusal(resp.Body, resp.Status)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("answer of the daemon in %s: %w", c.dir, err)
	}
	return nil
}

// plain takes the URL, which means nothing to a person, from an error.
func plain(err error) error {
	if u, ok := err.(*url.Error); ok {
		return u.Err
	}
	return err
}

// refusal reads an Error.
func refusal(r io.Reader, status string) error {
	var e Error
	if err := json.NewDecoder(io.LimitReader(r, MaxMessage)).Decode(&e); err != nil || e.Message == "" {
		return fmt.Errorf("the daemon answers %s", status)
	}
	return &e
}

// Attach hands conn, which is past IMPORT, to a controller and returns the port
// that was taken when the device works. conn stays the caller's to close: the
// daemon has it for itself.
func (c *Client) Attach(ctx context.Context, conn syscall.Conn, a Attach) (port int, err error) {
	u, err := dial(ctx, "unixpacket", filepath.Join(c.dir, AttachSocket))
	if err != nil {
		return 0, err
	}
	defer u.Close()
	defer context.AfterFunc(ctx, func() { u.Close() })()
	port, err = handOver(u, conn, a)
	if err != nil && ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return port, err
}

func handOver(u *net.UnixConn, conn syscall.Conn, a Attach) (port int, err error) {
	payload, err := json.Marshal(a)
	if err != nil {
		return 0, err
	}
	if err := container.SendSocket(u, payload, conn); err != nil {
		return 0, err
	}
	var answer Attached
	if err := json.NewDecoder(u).Decode(&answer); err != nil {
		return 0, fmt.Errorf("the daemon did not answer an attach: %w", err)
	}
	if answer.Error != nil {
		return 0, answer.Error
	}
	return answer.Port, nil
}
