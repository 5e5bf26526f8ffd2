// The official cases of gRPC's interop suite, called under an authority of one's own (see ../../README.md).
//
// Usage: caller ADDRESS AUTHORITY CASE... A case says its name when it begins and `ok` when it was passed; the first one that
// fails ends the program with 1.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// A case that is stuck fails.
const caseMax = 30 * time.Second

type run func(context.Context, *grpc.ClientConn)

func of(do func(context.Context, testgrpc.TestServiceClient, ...grpc.CallOption)) run {
	return func(ctx context.Context, conn *grpc.ClientConn) { do(ctx, testgrpc.NewTestServiceClient(conn)) }
}

var cases = map[string]run{
	"empty_unary":                 of(interop.DoEmptyUnaryCall),
	"large_unary":                 of(interop.DoLargeUnaryCall),
	"client_streaming":            of(interop.DoClientStreaming),
	"server_streaming":            of(interop.DoServerStreaming),
	"ping_pong":                   of(interop.DoPingPong),
	"empty_stream":                of(interop.DoEmptyStream),
	"timeout_on_sleeping_server":  of(interop.DoTimeoutOnSleepingServer),
	"cancel_after_begin":          of(interop.DoCancelAfterBegin),
	"cancel_after_first_response": of(interop.DoCancelAfterFirstResponse),
	"status_code_and_message":     of(interop.DoStatusCodeAndMessage),
	"special_status_message":      of(interop.DoSpecialStatusMessage),
	"custom_metadata":             of(interop.DoCustomMetadata),
	"unimplemented_method":        interop.DoUnimplementedMethod,
	"unimplemented_service": func(ctx context.Context, conn *grpc.ClientConn) {
		interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(conn))
	},
}

func main() {
	if len(os.Args) < 4 {
		log.Fatal("caller ADDRESS AUTHORITY CASE...")
	}
	conn, err := grpc.NewClient("passthrough:///"+os.Args[1],
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(os.Args[2]))
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range os.Args[3:] {
		do, known := cases[name]
		if !known {
			log.Fatalf("no such case: %s", name)
		}
		fmt.Print(name, " ")
		ctx, cancel := context.WithTimeout(context.Background(), caseMax)
		do(ctx, conn)
		cancel()
		fmt.Println("ok")
	}
}
