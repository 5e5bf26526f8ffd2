// A proxyless gRPC client and server on gRPC Go (see ../README.md).
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	xdscredentials "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"
)

// secure says whether certificates are asked for; what they are follows from xDS and the bootstrap.
var secure = os.Getenv("XDS_CREDENTIALS") == "1"

func clientCredentials() (credentials.TransportCredentials, error) {
	if !secure {
		return insecure.NewCredentials(), nil
	}
	return xdscredentials.NewClientCredentials(xdscredentials.ClientOptions{FallbackCreds: insecure.NewCredentials()})
}

func serverCredentials() (credentials.TransportCredentials, error) {
	if !secure {
		return insecure.NewCredentials(), nil
	}
	return xdscredentials.NewServerCredentials(xdscredentials.ServerOptions{FallbackCreds: insecure.NewCredentials()})
}

// raw takes every message for empty bytes.
type raw struct{}

func (raw) Marshal(any) (mem.BufferSlice, error) { return nil, nil }
func (raw) Unmarshal(mem.BufferSlice, any) error { return nil }
func (raw) Name() string                         { return "raw" }

type order struct {
	Op         string
	Target     string
	Method     string
	Headers    map[string]string
	TimeoutMs  int `json:"timeout_ms"`
	IntervalMs int `json:"interval_ms"`
	Count      int
}

type result struct {
	Code    int    `json:"code"`
	By      string `json:"by"`
	Message string `json:"message,omitempty"`
	Ms      int64  `json:"ms"`
}

type client struct {
	lock  sync.Mutex
	conns map[string]*grpc.ClientConn
}

func (c *client) dial(target string) (*grpc.ClientConn, error) {
	c.lock.Lock()
	defer c.lock.Unlock()
	if conn, ok := c.conns[target]; ok {
		return conn, nil
	}
	shown, err := clientCredentials()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("xds:///"+target,
		grpc.WithTransportCredentials(shown),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{})))
	if err == nil {
		c.conns[target] = conn
	}
	return conn, err
}

func (c *client) call(o order) result {
	if o.TimeoutMs == 0 {
		o.TimeoutMs = 5000
	}
	begin := time.Now()
	conn, err := c.dial(o.Target)
	var header metadata.MD
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(o.TimeoutMs)*time.Millisecond)
		defer cancel()
		ctx = metadata.NewOutgoingContext(ctx, metadata.New(o.Headers))
		err = conn.Invoke(ctx, o.Method, nil, nil, grpc.Header(&header))
	}
	r := result{Ms: time.Since(begin).Milliseconds()}
	if err != nil {
		r.Code, r.Message = int(status.Code(err)), err.Error()
	} else if by := header.Get("x-echo"); len(by) > 0 {
		r.By = by[0]
	}
	return r
}

type load struct {
	Sent     int            `json:"sent"`
	Failures map[string]int `json:"failures"`
	stop     chan struct{}
	done     chan struct{}
}

func (l *load) run(c *client, o order) {
	defer close(l.done)
	for {
		select {
		case <-l.stop:
			return
		case <-time.After(time.Duration(o.IntervalMs) * time.Millisecond):
		}
		r := c.call(o)
		l.Sent++
		if r.Code != 0 {
			l.Failures[fmt.Sprintf("%d %s", r.Code, r.Message)]++
		}
	}
}

func runClient() {
	c := &client{conns: map[string]*grpc.ClientConn{}}
	var running *load
	lines, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		switch o.Op {
		case "call":
			results := []result{c.call(o)}
			for len(results) < o.Count {
				results = append(results, c.call(o))
			}
			out.Encode(map[string]any{"results": results})
		case "load":
			running = &load{Failures: map[string]int{}, stop: make(chan struct{}), done: make(chan struct{})}
			go running.run(c, o)
			out.Encode(struct{}{})
		case "stop":
			close(running.stop)
			<-running.done
			out.Encode(running)
		}
	}
}

func runServer(address, name string) error {
	answer := func(_ any, stream grpc.ServerStream) error {
		if err := stream.RecvMsg(nil); err != nil {
			return err
		}
		if err := stream.SendHeader(metadata.Pairs("x-echo", name)); err != nil {
			return err
		}
		return stream.SendMsg(nil)
	}
	mode := xds.ServingModeCallback(func(_ net.Addr, change xds.ServingModeChangeArgs) {
		if change.Err != nil {
			fmt.Printf("not serving: %v\n", change.Err)
		} else {
			fmt.Println("serving")
		}
	})
	shown, err := serverCredentials()
	if err != nil {
		return err
	}
	server, err := xds.NewGRPCServer(mode, grpc.Creds(shown), grpc.UnknownServiceHandler(answer), grpc.ForceServerCodecV2(raw{}))
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return server.Serve(listener)
}

func main() {
	if os.Args[1] == "client" {
		runClient()
		return
	}
	if err := runServer(os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
