// Physics in Go, as somebody writes it who has never heard of a mesh: it takes a call, counts it, and has `engine`
// compute the answer. It copies no header: which player, which trace and which colour a call belongs to is lost here,
// unless somebody else remembers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// Messages pass as they are.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(message any) ([]byte, error) {
	bytes, ok := message.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("%T is no raw message", message)
	}
	return *bytes, nil
}

func (raw) Unmarshal(bytes []byte, message any) error {
	into, ok := message.(*[]byte)
	if !ok {
		return fmt.Errorf("%T is no raw message", message)
	}
	*into = append([]byte(nil), bytes...)
	return nil
}

type physics struct {
	engine *grpc.ClientConn
	calls  atomic.Uint64
}

// Every method takes one message and answers one.
func (p *physics) call(_ any, stream grpc.ServerStream) error {
	method, ok := grpc.MethodFromServerStream(stream)
	if !ok {
		return status.Error(codes.Internal, "a call without a method")
	}
	var request, answer []byte
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	p.calls.Add(1)
	// The caller's deadline and cancellation go on; its metadata does not.
	if err := p.engine.Invoke(stream.Context(), method, &request, &answer); err != nil {
		return err
	}
	return stream.SendMsg(&answer)
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:8080", "where it listens")
	outbound := flag.String("outbound", "127.0.0.1:15001", "its sidecar's outbound listener")
	flag.Parse()
	engine, err := grpc.NewClient("passthrough:///"+*outbound, grpc.WithAuthority("engine"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		return err
	}
	defer engine.Close()
	socket, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	p := &physics{engine: engine}
	server := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(p.call))
	stop, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	go func() {
		<-stop.Done()
		server.GracefulStop()
	}()
	if err := server.Serve(socket); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	log.Printf("%d calls", p.calls.Load())
	return nil
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
