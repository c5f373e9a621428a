// grpc-go against a router: client ADDRESS. One JSON line a case; a line on stdin lets it go on.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	v1 "stoker/v1"
)

const large = 64 << 20

type seen struct {
	text     bytes.Buffer
	tokens   int
	messages int
	finished bool
}

type client struct{ stub v1.InferenceServiceClient }

func generation(text string, tokens int64, model string) *v1.Generation {
	return &v1.Generation{
		Model:    model,
		Prompt:   &v1.Generation_Text{Text: text},
		Sampling: &v1.Sampling{MaxTokens: tokens, IgnoreEos: true},
	}
}

func (c client) unary(ctx context.Context, text string, tokens int64, options ...grpc.CallOption) (*v1.GenerateResponse, error) {
	return c.stub.Generate(ctx, &v1.GenerateRequest{Generation: generation(text, tokens, "sim-model")}, options...)
}

// All of a stream; `each` is told of what there is so far.
func (c client) whole(ctx context.Context, text string, tokens int64, each func(*seen)) (*seen, error) {
	call, err := c.stub.GenerateStream(ctx, &v1.GenerateStreamRequest{Generation: generation(text, tokens, "sim-model")})
	if err != nil {
		return nil, err
	}
	all := &seen{}
	for {
		part, err := call.Recv()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all.messages++
		for _, delta := range part.Deltas {
			all.text.WriteString(delta.Text)
			all.tokens += len(delta.TokenIds)
		}
		all.finished = all.finished || part.Finished != nil
		each(all)
	}
}

func nothing(*seen) {}

func refused(err error, code codes.Code) error {
	if status.Code(err) != code {
		return fmt.Errorf("not %v: %v", code, err)
	}
	return nil
}

// So many streams at once, each to be whole.
func (c client) many(count int, tokens int64, name string, each func(int, *seen)) error {
	var wait sync.WaitGroup
	failures := make(chan error, count)
	for i := 0; i < count; i++ {
		wait.Add(1)
		go func(i int) {
			defer wait.Done()
			all, err := c.whole(context.Background(), fmt.Sprintf("%s %d", name, i), tokens, func(s *seen) { each(i, s) })
			if err == nil && (int64(all.tokens) != tokens || !all.finished) {
				err = errors.New("a stream is not whole")
			}
			if err != nil {
				failures <- err
			}
		}(i)
	}
	wait.Wait()
	close(failures)
	return <-failures
}

func (c client) one() error {
	answer, err := c.unary(context.Background(), "unary one", 16)
	if err == nil && len(answer.Outputs[0].TokenIds) != 16 {
		err = errors.New("not 16 tokens")
	}
	return err
}

func (c client) stream() error {
	once, err := c.unary(context.Background(), "stream of four hundred", 400)
	if err != nil {
		return err
	}
	all, err := c.whole(context.Background(), "stream of four hundred", 400, nothing)
	if err == nil && (all.text.String() != once.Outputs[0].Text || all.tokens != 400) {
		err = errors.New("not what a unary call gives")
	}
	if err == nil && all.messages <= 50 {
		err = fmt.Errorf("%d messages", all.messages)
	}
	return err
}

func (c client) cancel() error {
	for i := 0; i < 20; i++ {
		ctx, cancel := context.WithCancel(context.Background())
		_, err := c.whole(ctx, "cancel", 100000, func(s *seen) {
			if s.tokens >= 5 {
				cancel()
			}
		})
		cancel()
		if err = refused(err, codes.Canceled); err != nil {
			return err
		}
	}
	return nil
}

func (c client) deadline() error {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_, err := c.whole(ctx, "deadline", 100000, nothing)
	return refused(err, codes.DeadlineExceeded)
}

func (c client) large() error {
	answer, err := c.unary(context.Background(), "lorem"+strings.Repeat(" ", 4<<20)+"ipsum", 3)
	if err == nil && len(answer.Started.PromptTokenIds) < 200000 {
		err = errors.New("not a large answer")
	}
	return err
}

func (c client) tooLarge() error {
	_, err := c.unary(context.Background(), strings.Repeat("lorem ipsum ", (17<<20)/12), 3)
	if err = refused(err, codes.ResourceExhausted); err != nil {
		return err
	}
	return c.one()
}

func (c client) metadata() error {
	with := metadata.AppendToOutgoingContext(context.Background(),
		"x-large", strings.Repeat("v", 4000), "x-large-bin", strings.Repeat("\a", 2000))
	if _, err := c.unary(with, "metadata", 4); err != nil {
		return err
	}
	// This client keeps the server's limit by itself, with a code of its own.
	more := metadata.AppendToOutgoingContext(context.Background(), "x-larger", strings.Repeat("v", 20000))
	if _, err := c.unary(more, "metadata", 4); err == nil {
		return errors.New("metadata of 20,000 bytes were taken")
	}
	return c.one()
}

func (c client) gzip() error {
	answer, err := c.unary(context.Background(), strings.Repeat("lorem ipsum ", 50000), 4, grpc.UseCompressor(gzip.Name))
	if err == nil && len(answer.Started.PromptTokenIds) < 100000 {
		err = errors.New("not the whole prompt")
	}
	return err
}

func (c client) error() error {
	asked := &v1.GenerateRequest{Generation: generation("error", 4, "no-such-model")}
	_, err := c.stub.Generate(context.Background(), asked)
	if err := refused(err, codes.NotFound); err != nil {
		return err
	}
	if len(status.Convert(err).Proto().Details) == 0 {
		return errors.New("no details")
	}
	return nil
}

func told(name string, err error) {
	why := ""
	if err != nil {
		why = err.Error()
	}
	line, _ := json.Marshal(map[string]string{"case": name, "why": why})
	fmt.Println(string(line))
}

func main() {
	options := []grpc.DialOption{
		grpc.WithInsecure(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(large), grpc.MaxCallSendMsgSize(large)),
	}
	connection, err := grpc.Dial(os.Args[1], options...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	c := client{v1.NewInferenceServiceClient(connection)}
	parallel := func() error { return c.many(200, 50, "parallel", func(int, *seen) {}) }
	told("unary", c.one())
	told("stream", c.stream())
	told("parallel", parallel())
	told("cancel", c.cancel())
	told("deadline", c.deadline())
	told("large", c.large())
	told("too_large", c.tooLarge())
	told("metadata", c.metadata())
	told("gzip", c.gzip())
	told("error", c.error())

	// The server is told to leave while streams run, and comes back.
	var begun int32
	told("drain", c.many(20, 400, "drain", func(_ int, s *seen) {
		if s.messages == 1 && atomic.AddInt32(&begun, 1) == 20 {
			fmt.Println(`{"case": "streams run"}`)
		}
	}))
	bufio.NewReader(os.Stdin).ReadString('\n')
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	_, err = c.unary(ctx, "restart", 4, grpc.WaitForReady(true))
	if err == nil {
		err = parallel()
	}
	told("restart", err)
}
