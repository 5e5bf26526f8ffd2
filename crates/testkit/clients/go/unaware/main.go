// A service that knows nothing of a mesh, on net/http and gRPC Go, and the last hop behind it.
//
//	unaware http ADDRESS OUTBOUND [HEADER...]   passes GETs on to `last`
//	unaware grpc ADDRESS OUTBOUND [HEADER...]   passes calls on to `last`, whatever their method
//	unaware last ADDRESS                        answers gRPC calls with what reached it
//
// A hop copies no header but those that it is told to.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

const (
	connections = 4
	timeout     = 20 * time.Second
)

// What the last hop tells of.
var names = []string{"x-env", "x-canary-id", "traceparent"}

// raw takes every message for empty bytes.
type raw struct{}

func (raw) Marshal(any) (mem.BufferSlice, error) { return nil, nil }
func (raw) Unmarshal(mem.BufferSlice, any) error { return nil }
func (raw) Name() string                         { return "raw" }

func serveHTTP(address, outbound string, copied []string) error {
	client := &http.Client{
		Timeout:   timeout,
		Transport: &http.Transport{MaxIdleConnsPerHost: 256},
	}
	pass := func(w http.ResponseWriter, r *http.Request) {
		request, err := http.NewRequest("GET", "http://"+outbound+r.URL.Path, nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		request.Host = "last"
		for _, name := range copied {
			if value := r.Header.Get(name); value != "" {
				request.Header.Set(name, value)
			}
		}
		answer, err := client.Do(request)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		w.WriteHeader(answer.StatusCode)
		io.Copy(w, answer.Body)
	}
	return http.ListenAndServe(address, http.HandlerFunc(pass))
}

type handler func(method string, stream grpc.ServerStream) error

func serveGRPC(address string, handle handler) error {
	answer := func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		if err := stream.RecvMsg(nil); err != nil {
			return err
		}
		if err := handle(method, stream); err != nil {
			return err
		}
		return stream.SendMsg(nil)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(answer), grpc.ForceServerCodecV2(raw{}))
	return server.Serve(listener)
}

func passGRPC(outbound string, copied []string) (handler, error) {
	var pool [connections]*grpc.ClientConn
	for i := range pool {
		conn, err := grpc.NewClient("passthrough:///"+outbound,
			grpc.WithAuthority("last"),
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{})))
		if err != nil {
			return nil, err
		}
		pool[i] = conn
	}
	var turn atomic.Uint32
	return func(method string, stream grpc.ServerStream) error {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		came, _ := metadata.FromIncomingContext(stream.Context())
		for _, name := range copied {
			for _, value := range came.Get(name) {
				ctx = metadata.AppendToOutgoingContext(ctx, name, value)
			}
		}
		var seen metadata.MD
		conn := pool[turn.Add(1)%connections]
		if err := conn.Invoke(ctx, method, nil, nil, grpc.Header(&seen)); err != nil {
			return err
		}
		told := metadata.MD{}
		for _, name := range names {
			told.Set("seen-"+name, seen.Get("seen-"+name)...)
		}
		return stream.SendHeader(told)
	}, nil
}

func tell(_ string, stream grpc.ServerStream) error {
	came, _ := metadata.FromIncomingContext(stream.Context())
	seen := metadata.MD{}
	for _, name := range names {
		if values := came.Get(name); len(values) > 0 {
			seen.Set("seen-"+name, values[0])
		}
	}
	return stream.SendHeader(seen)
}

func run(arguments []string) error {
	switch arguments[0] {
	case "http":
		return serveHTTP(arguments[1], arguments[2], arguments[3:])
	case "grpc":
		pass, err := passGRPC(arguments[2], arguments[3:])
		if err != nil {
			return err
		}
		return serveGRPC(arguments[1], pass)
	case "last":
		return serveGRPC(arguments[1], tell)
	}
	return fmt.Errorf("unaware knows http, grpc and last")
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
