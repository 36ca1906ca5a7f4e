package jobs

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/redistest"
)

// liner asks lines as attempts do.
type liner struct {
	t   *testing.T
	rdb redis.UniversalClient
	k   *lineKeeper

	store *credentials.Store
}

func newLiner(t *testing.T) *liner {
	rdb := redistest.New(t).Client(t)
	p := &Pool{rdb: rdb}
	p.waker, p.line = newWaker(p), newLineKeeper(p)
	keys, err := credentials.ParseKeys(credentials.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return &liner{t, rdb, p.line, credentials.NewStore(rdb, keys)}
}

func (l *liner) ask(credential string, r lineRequest) *stand {
	l.t.Helper()
	s, err := l.k.ask(context.Background(), credential, r)
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

func (l *liner) enter(id string, place int64, max int) *stand {
	l.t.Helper()
	return l.ask("c", lineRequest{mode: "enter", token: "t" + id, waiter: waiterName("steps", id), place: place, max: max})
}

func (l *liner) leave(id, outcome, epoch string, pause time.Duration, max int) *stand {
	l.t.Helper()
	return l.ask("c", lineRequest{mode: "leave", token: "t" + id, waiter: waiterName("steps", id), max: max, outcome: outcome, epoch: epoch, pause: pause, said: "the API answered 429"})
}

// over ends a pause, as its time does.
func (l *liner) over() {
	l.rdb.HSet(context.Background(), lineKey("c"), "until", 0)
}

func about(got, want time.Duration) bool { return got > want-2*time.Second && got <= want }

// cyclr 9.3: the wait grows by 0, 1, 3, 7, 15, 30 minutes with each 429 in a
// row of the credential, whichever execution meets it.
func TestLine_pausesGrowInARowAndASuccessResets(t *testing.T) {
	l := newLiner(t)
	epoch := ""
	for i, more := range []int{0, 1, 3, 7, 15, 30, 30} {
		s := l.leave(fmt.Sprint(i), outLimited, epoch, time.Minute, 0)
		if want := time.Duration(1+more) * time.Minute; !about(s.pause, want) {
			t.Errorf("429 number %d: a pause of %s, want %s", i+1, s.pause, want)
		}
		epoch = s.epoch
		l.over()
	}
	if s := l.enter("trial", 0, 0); s.state != standInside {
		t.Fatalf("after the pause the first does not go: %+v", s)
	}
	l.leave("trial", outOK, epoch, 0, 0)
	if s := l.leave("x", outLimited, epoch, 2*time.Second, 0); !about(s.pause, 2*time.Second) {
		t.Errorf("after a success a pause of %s, want 2 s", s.pause)
	}
}

// Those that were under way when the API first said 429 tell nothing new: they
// neither make the wait grow nor end it, but theirs may be the longer one.
func TestLine_whatWasSentBeforeDoesNotCount(t *testing.T) {
	l := newLiner(t)
	l.leave("1", outLimited, "", 2*time.Second, 0)
	for i := range 7 {
		if s := l.leave(fmt.Sprint("late", i), outLimited, "", 2*time.Second, 0); !about(s.pause, 2*time.Second) {
			t.Errorf("one sent before makes it a pause of %s", s.pause)
		}
	}
	if s := l.leave("longer", outLimited, "", 30*time.Second, 0); !about(s.pause, 30*time.Second) {
		t.Errorf("a pause of %s, want 30 s", s.pause)
	}
	l.leave("fine", outOK, "", 0, 0)
	if s := l.enter("new", 2, 0); s.state != standPaused {
		t.Errorf("a success sent before the 429 ended the pause: %+v", s)
	}
	if s := l.ask("other", lineRequest{mode: "enter", token: "o", waiter: "o|steps"}); s.state != standInside {
		t.Errorf("another credential is paused: %+v", s)
	}
}

// After the pause one goes, then two, then three at once, in their order.
func TestLine_theCrowdBeginsGently(t *testing.T) {
	l := newLiner(t)
	epoch := l.leave("0", outLimited, "", time.Second, 0).epoch
	for i := range 30 {
		if s := l.enter(fmt.Sprintf("%02d", i), int64(100-i), 0); s.state != standPaused {
			t.Fatalf("sent while paused: %+v", s)
		}
	}
	l.over()
	next := l.ask("c", lineRequest{mode: "look", max: -1}).called
	var order, rounds []string
	for len(next) > 0 {
		rounds = append(rounds, fmt.Sprint(len(next)))
		var inside []string
		for _, name := range next {
			_, id := splitWaiter(name)
			if s := l.enter(id, 0, 0); s.state != standInside {
				t.Fatalf("%s was called up and does not go: %+v", id, s)
			}
			inside = append(inside, id)
			order = append(order, id)
		}
		if len(rounds) <= 3 {
			if s := l.enter("pushy", 1000, 0); s.state != standAfterPause {
				t.Fatalf("one more goes: %+v", s)
			}
			l.ask("c", lineRequest{mode: "leave", waiter: "pushy|steps", max: -1, outcome: outDropped})
		}
		next = nil
		for _, id := range inside {
			next = append(next, l.leave(id, outOK, epoch, 0, 0).called...)
		}
	}
	if diff := cmp.Diff("1 2 3", strings.Join(rounds[:3], " ")); diff != "" {
		t.Errorf("at once, round by round: %s", rounds)
	}
	if len(order) != 31 || order[0] != "0" {
		t.Errorf("they went as %s", order)
	}
	for i, id := range order[1:] {
		if want := fmt.Sprintf("%02d", 29-i); id != want {
			t.Fatalf("number %d is %s, want %s", i, id, want)
		}
	}
	if n := l.rdb.Exists(context.Background(), lineKey("c")).Val(); n != 0 {
		t.Error("nobody waits any more, and the line stands")
	}
}

// A batch is enqueued in one millisecond: its steps go in the order of their
// ids, and those on an overflow queue not before the others.
func TestLine_aBatchGoesInItsOrder(t *testing.T) {
	l := newLiner(t)
	const batch = 100
	l.enter("first", 1, 1)
	for _, w := range [][2]string{{"steps.3", "e"}, {"steps.2", "d"}, {"steps", "a"}, {"with|bar", "b"}, {"steps", "c"}} {
		if s := l.ask("c", lineRequest{mode: "enter", token: "t" + w[1], waiter: waiterName(w[0], w[1]), place: batch, max: 1}); s.state != standConcurrency {
			t.Fatalf("%+v", s)
		}
	}
	var order []string
	for id := "first"; ; {
		s := l.leave(id, outOK, "", 0, 1)
		if len(s.called) == 0 {
			break
		}
		var queue string
		queue, id = splitWaiter(s.called[0])
		order = append(order, queue+" "+id)
		if s := l.ask("c", lineRequest{mode: "enter", token: "t" + id, waiter: s.called[0], place: batch, max: 1}); s.state != standInside {
			t.Fatalf("%s does not go: %+v", id, s)
		}
	}
	if diff := cmp.Diff([]string{"steps a", "with|bar b", "steps c", "steps.2 d", "steps.3 e"}, order); diff != "" {
		t.Error(diff)
	}
}

// Who was called up and does not come is passed over: its place is kept free
// for a moment only.
func TestLine_placesAreNotKeptForThoseWhoDoNotCome(t *testing.T) {
	l := newLiner(t)
	ctx := context.Background()
	l.enter("1", 1, 1)
	l.enter("gone", 2, 1)
	l.enter("3", 3, 1)
	if got := l.leave("1", outOK, "", 0, 1).called; cmp.Diff([]string{"gone|steps"}, got) != "" {
		t.Fatalf("called up: %s", got)
	}
	if s := l.enter("4", 4, 1); s.state != standConcurrency || s.before != 2 {
		t.Errorf("a newcomer was quicker: %+v", s)
	}
	l.rdb.ZAdd(ctx, lineKey("c")+":called", redis.Z{Score: float64(time.Now().Add(-2 * calledFor).UnixMilli()), Member: "gone|steps"})
	if got := l.ask("c", lineRequest{mode: "look", max: -1}).called; cmp.Diff([]string{"3|steps"}, got) != "" {
		t.Fatalf("called up next: %s", got)
	}
	if s := l.enter("3", 3, 1); s.state != standInside {
		t.Errorf("it does not go: %+v", s)
	}
	if s := l.enter("gone", 2, 1); s.state != standConcurrency {
		t.Errorf("one too many: %+v", s)
	}
}

// A lease that is not renewed lapses, and renewal does not bring one back.
func TestLine_leasesLapse(t *testing.T) {
	l := newLiner(t)
	ctx := context.Background()
	l.enter("1", 1, 1)
	l.k.hold("t1", "c")
	in := lineKey("c") + ":in"
	l.rdb.ZAdd(ctx, in, redis.Z{Score: float64(time.Now().Add(time.Second).UnixMilli()), Member: "t1"})
	l.k.renew(ctx)
	if left := time.Until(time.UnixMilli(int64(l.rdb.ZScore(ctx, in, "t1").Val()))); left < placeLease/2 {
		t.Errorf("renewed it lapses in %s", left)
	}
	l.rdb.ZAdd(ctx, in, redis.Z{Score: 1, Member: "t1"})
	if s := l.enter("2", 2, 1); s.state != standInside {
		t.Errorf("the place of a dead worker is kept: %+v", s)
	}
	l.k.renew(ctx)
	if s := l.enter("3", 3, 1); s.state != standConcurrency {
		t.Errorf("one too many: %+v", s)
	}
	if got := l.rdb.ZRange(ctx, in, 0, -1).Val(); cmp.Diff([]string{"t2"}, got) != "" {
		t.Errorf("inside: %s", got)
	}
}

// Ten thousand that wait: a newcomer costs as much as with one.
func TestLine_boundedTime(t *testing.T) {
	l := newLiner(t)
	ctx := context.Background()
	l.enter("1", 0, 1)
	for i := range 10 {
		batch := make([]redis.Z, 1000)
		for j := range batch {
			batch[j] = redis.Z{Score: float64(1000*i + j), Member: fmt.Sprintf("w%05d|steps", 1000*i+j)}
		}
		l.rdb.ZAdd(ctx, lineKey("c")+":wait", batch...)
	}
	l.rdb.ConfigResetStat(ctx)
	if s := l.enter("new", 1<<40, 1); s.before != 10_000 {
		t.Errorf("%d are before it", s.before)
	}
	if got := l.leave("1", outOK, "", 0, 1).called; cmp.Diff([]string{"w00000|steps"}, got) != "" {
		t.Errorf("called up: %s", got)
	}
	calls := 0
	for line := range strings.Lines(l.rdb.Info(ctx, "commandstats").Val()) {
		var k int
		if _, after, ok := strings.Cut(line, ":calls="); ok && !strings.HasPrefix(line, "cmdstat_config") {
			_, _ = fmt.Sscanf(after, "%d", &k)
			calls += k
		}
	}
	if calls > 50 {
		t.Errorf("%d commands", calls)
	}
}

// A pause that a person ends is over as by its time: one goes alone, and what
// the API said before counts no more.
func TestLine_endedByAPersonOneGoesAlone(t *testing.T) {
	l := newLiner(t)
	ctx := context.Background()
	put := func(merge bool) {
		t.Helper()
		in := &credentials.Input{CredentialID: "c", Connector: "acme"}
		if _, _, err := l.store.Put(ctx, in, merge); err != nil {
			t.Fatal(err)
		}
	}
	put(false)
	for name, end := range map[string]func(){
		"unpause": func() {
			if err := l.store.EndPause(ctx, "c"); err != nil {
				t.Fatal(err)
			}
		},
		"put":   func() { put(false) },
		"merge": func() { put(true) },
	} {
		epoch := l.leave("0", outLimited, "", time.Hour, 0).epoch
		l.over()
		l.enter("0", 0, 0)
		epoch = l.leave("0", outLimited, epoch, time.Hour, 0).epoch
		for i := range 5 {
			if s := l.enter(fmt.Sprint(i), int64(i), 0); s.state != standPaused {
				t.Fatalf("%s: sent while paused: %+v", name, s)
			}
		}
		end()
		if got := l.ask("c", lineRequest{mode: "look", max: -1}).called; cmp.Diff([]string{"0|steps"}, got) != "" {
			t.Errorf("%s: called up: %s", name, got)
		}
		if s := l.enter("0", 0, 0); s.state != standInside {
			t.Errorf("%s: the first does not go: %+v", name, s)
		}
		if s := l.enter("1", 1, 0); s.state != standAfterPause {
			t.Errorf("%s: a second one goes: %+v", name, s)
		}
		if s := l.leave("0", outLimited, epoch, time.Minute, 0); !about(s.pause, time.Minute) {
			t.Errorf("%s: the next 429 makes it a pause of %s, want 1 m", name, s.pause)
		}
		l.rdb.Del(ctx, lineKeys("c")[:4]...)
	}
	if n := l.rdb.Exists(ctx, lineKey("c")).Val(); n != 0 {
		t.Fatal("the line stands")
	}
	put(true)
	if err := l.store.EndPause(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if n := l.rdb.Exists(ctx, lineKey("c")).Val(); n != 0 {
		t.Error("one without a line has got one")
	}
}

// A credential that is deleted holds nobody up: all are called up, a hundred at
// a time, and none of them calls.
func TestLine_ofADeletedCredential(t *testing.T) {
	l := newLiner(t)
	ctx := context.Background()
	if _, _, err := l.store.Put(ctx, &credentials.Input{CredentialID: "c", Connector: "acme"}, false); err != nil {
		t.Fatal(err)
	}
	l.enter("inside", 0, 3)
	epoch := l.leave("0", outLimited, "", time.Hour, 3).epoch
	for i := range 150 {
		l.enter(fmt.Sprintf("%03d", i), int64(i), 3)
	}
	if err := l.store.Delete(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if got := l.ask("c", lineRequest{mode: "look", max: -1}).called; len(got) != 100 {
		t.Errorf("%d are called up, want 100", len(got))
	}
	if s := l.enter("late", 1000, 3); s.state == standInside || s.pause > 0 {
		t.Errorf("one that read it before goes, or waits for the pause: %+v", s)
	}
	if s := l.leave("inside", outLimited, epoch, time.Hour, 3); s.pause > 0 {
		t.Errorf("a 429 that comes after makes it a pause of %s", s.pause)
	}
	for i := range 10 { // enough
		for _, name := range l.ask("c", lineRequest{mode: "look", max: -1}).called {
			if _, id := splitWaiter(name); i == 9 {
				t.Errorf("%s is called up still", id)
			}
		}
		for _, name := range l.rdb.ZRange(ctx, lineKey("c")+":called", 0, -1).Val() {
			l.ask("c", lineRequest{mode: "leave", waiter: name, max: -1, outcome: outDropped})
		}
	}
	if left := l.rdb.ZCard(ctx, lineKey("c")+":wait").Val(); left != 0 {
		t.Errorf("%d are left", left)
	}
	// Put again, it is as new.
	if _, _, err := l.store.Put(ctx, &credentials.Input{CredentialID: "c", Connector: "acme"}, false); err != nil {
		t.Fatal(err)
	}
	if s := l.enter("new", 1, 3); s.state != standInside {
		t.Errorf("the new one waits: %+v", s)
	}
}

func TestLineKeys_shareAHashTag(t *testing.T) {
	for _, k := range lineKeys("a:b@c") {
		if !strings.Contains(k, ":{a:b@c}") {
			t.Errorf("key %q", k)
		}
	}
}
