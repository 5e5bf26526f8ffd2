// A client of Phalanx' game services in Go: it submits scores, reads a board page by page, asks for a player's own place,
// and has two players matched with each other.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"phalanx.dev/examples/go-client/gamev1"
)

var (
	server = flag.String("server", "127.0.0.1:7450", "where the services are")
	board  = flag.String("board", "season", "the board that is played for")
)

func main() {
	log.SetFlags(0)
	flag.Parse()
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	conn, err := grpc.NewClient("passthrough:///"+*server, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := leaderboard(ctx, gamev1.NewLeaderboardClient(conn)); err != nil {
		return fmt.Errorf("leaderboard: %w", err)
	}
	if err := matchmaking(ctx, gamev1.NewMatchmakingClient(conn)); err != nil {
		return fmt.Errorf("matchmaking: %w", err)
	}
	return nil
}

// leaderboard counts some results, reads the board and asks where its players stand.
func leaderboard(ctx context.Context, boards gamev1.LeaderboardClient) error {
	for number := range 12 {
		// A result with a name counts once, so that a call without an answer may be repeated.
		request := &gamev1.SubmitRequest{Board: *board, Player: fmt.Sprintf("player-%02d", number), Points: int64(100 - number),
			Id: fmt.Sprintf("match-%d", number)}
		if _, err := boards.Submit(ctx, request, grpc.WaitForReady(true)); err != nil {
			return err
		}
	}
	again, err := boards.Submit(ctx, &gamev1.SubmitRequest{Board: *board, Player: "player-00", Points: 100, Id: "match-0"})
	if err != nil {
		return err
	}
	fmt.Printf("submitted 12 results; one of them again: counted=%v\n", again.Counted)
	// Everybody sees them with the board's next version, their own players at once.
	for {
		page, err := boards.Page(ctx, &gamev1.PageRequest{Board: *board, Size: 1})
		if err != nil {
			return err
		}
		if page.Total >= 12 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := pages(ctx, boards); err != nil {
		return err
	}
	rank, err := boards.Rank(ctx, &gamev1.RankRequest{Board: *board, Player: "player-11"})
	if err != nil {
		return err
	}
	place := rank.Rank
	fmt.Printf("player-11: place %d to %d by %v, score %v\n", place.Low, place.High, place.Source, place.Score)
	friends, err := boards.Friends(ctx, &gamev1.FriendsRequest{Board: *board, Players: []string{"player-05", "player-03", "nobody"}})
	if err != nil {
		return err
	}
	fmt.Printf("of three friends %s is the best\n", friends.Friends[0].Player)
	return nil
}

// pages reads the whole top. All pages are of one version; where it is gone meanwhile, reading begins again.
func pages(ctx context.Context, boards gamev1.LeaderboardClient) error {
	for {
		rows, version, token := 0, "", ""
		for {
			var header metadata.MD
			request := &gamev1.PageRequest{Board: *board, Size: 5, Token: token, Viewer: "player-00"}
			page, err := boards.Page(ctx, request, grpc.Header(&header))
			if status.Code(err) == codes.Aborted {
				break
			}
			if err != nil {
				return err
			}
			if version == "" {
				version = page.Freshness.Version
				fmt.Printf("board %s: %v, %d ms old, %v\n", *board, page.Freshness.Cache, page.Freshness.AgeMs, header.Get("cache-status"))
			}
			if page.Freshness.Version != version {
				return fmt.Errorf("pages of versions %s and %s", version, page.Freshness.Version)
			}
			for _, row := range page.Rows {
				fmt.Printf("%4d  %-10s %v\n", row.Place, row.Player, row.Score)
			}
			rows += len(page.Rows)
			if token = page.NextToken; token == "" {
				fmt.Printf("%d rows of one version\n", rows)
				return nil
			}
		}
	}
}

// matchmaking lets two players find each other, each with a stream of her own.
func matchmaking(ctx context.Context, shard gamev1.MatchmakingClient) error {
	about, err := shard.Status(ctx, &gamev1.StatusRequest{})
	if err != nil {
		return err
	}
	latency := map[string]uint32{}
	for _, region := range about.Regions {
		latency[region] = 20
	}
	type end struct {
		matched *gamev1.Matched
		err     error
	}
	ends := make(chan end, 2)
	players := []uint64{rand.Uint64(), rand.Uint64()}
	for _, player := range players {
		go func() {
			matched, err := play(ctx, shard, &gamev1.Player{Id: player, LatencyMs: latency})
			ends <- end{matched, err}
		}()
	}
	one, other := <-ends, <-ends
	if err := errors.Join(one.err, other.err); err != nil {
		return err
	}
	if one.matched.Match != other.matched.Match {
		return fmt.Errorf("matches %s and %s", one.matched.Match, other.matched.Match)
	}
	fmt.Printf("both are in match %s, in %s, at %s\n", one.matched.Match, one.matched.Region, one.matched.Room)
	return nil
}

// play waits for a match and says yes to it.
func play(ctx context.Context, shard gamev1.MatchmakingClient, player *gamev1.Player) (*gamev1.Matched, error) {
	// The id is the client's own, so that a call without an answer may be repeated.
	ticket := rand.Uint64() | 1
	request := &gamev1.EnqueueRequest{Ticket: ticket, Players: []*gamev1.Player{player}}
	if _, err := shard.Enqueue(ctx, request); err != nil {
		return nil, err
	}
	states, err := shard.Watch(ctx, &gamev1.WatchRequest{Ticket: ticket})
	if err != nil {
		return nil, err
	}
	confirmed := ""
	for {
		state, err := states.Recv()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the stream ended before the match")
		}
		if err != nil {
			return nil, err
		}
		switch {
		case state.GetMatched() != nil:
			return state.GetMatched(), nil
		case state.GetGone() != nil:
			return nil, fmt.Errorf("no match: %v", state.GetGone().Why)
		case state.GetOutside() != nil:
			fmt.Fprintf(os.Stderr, "%d are before us\n", state.GetOutside().Ahead)
		case state.GetProposed() != nil && state.GetProposed().Ask && state.GetProposed().Match != confirmed:
			confirmed = state.GetProposed().Match
			fmt.Printf("a match is proposed; yes\n")
			yes := &gamev1.ConfirmRequest{Match: confirmed, Player: player.Id}
			if _, err := shard.Confirm(ctx, yes); err != nil {
				return nil, err
			}
		}
	}
}
