// grpc-gateway in front of a service, as its own documentation sets it up, for the comparison of answers:
// `gateway LISTEN SERVICE`. Fields that have no value are left out, as the mesh does by default.
package main

import (
	"context"
	"log"
	"net/http"
	"os"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	battlev1 "phalanx.dev/testkit/gateway/battle/v1"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: gateway LISTEN SERVICE")
	}
	marshaler := &runtime.HTTPBodyMarshaler{Marshaler: &runtime.JSONPb{
		MarshalOptions: protojson.MarshalOptions{EmitUnpopulated: false},
	}}
	mux := runtime.NewServeMux(runtime.WithMarshalerOption(runtime.MIMEWildcard, marshaler))
	options := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	err := battlev1.RegisterBattleHandlerFromEndpoint(context.Background(), mux, os.Args[2], options)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe(os.Args[1], mux))
}
