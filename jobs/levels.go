package jobs

import "strings"

// A queue of steps is served as several queues of asynq: its own, and one for
// each level of overflow. The more executions of an account are under way, the
// lower the level that its next ones are enqueued in; each stays in its queue
// until it has ended. Workers take from all levels, mostly from the first that
// has tasks waiting, and from each at least its share.

// level is one of the levels of a queue.
type level struct {
	suffix string // of the queue's name
	ahead  int64  // so many of its account under way, or more: the next level
	weight int    // its share where all levels have tasks, as asynq counts
}

// The first level holds so few of one account that those of another pass in no
// time; between the others a flood leaves room to what is only much.
func levels() []level {
	return []level{
		{suffix: "", ahead: 100, weight: 10},
		{suffix: ".2", ahead: 5000, weight: 3},
		{suffix: ".3", weight: 1},
	}
}

// levelQueue is the queue for an execution whose account has so many under way.
func levelQueue(queue string, ahead int64) string {
	all := levels()
	for _, l := range all[:len(all)-1] {
		if ahead < l.ahead {
			return queue + l.suffix
		}
	}
	return queue + all[len(all)-1].suffix
}

// IsOverflow says that a queue's name is reserved for the overflow of another.
func IsOverflow(queue string) bool {
	for _, l := range levels()[1:] {
		if strings.HasSuffix(queue, l.suffix) {
			return true
		}
	}
	return false
}

// ofQueue says that one of asynq's queues is a level of a queue of steps.
func ofQueue(name, queue string) bool {
	for _, l := range levels() {
		if name == queue+l.suffix {
			return true
		}
	}
	return false
}

// allLevels are the queues of asynq that serve queues of steps, with their weights.
func allLevels(queues map[string]int) map[string]int {
	all := make(map[string]int, len(queues)*len(levels()))
	for q, weight := range queues {
		for _, l := range levels() {
			all[q+l.suffix] = weight * l.weight
		}
	}
	return all
}
