package jobs

import (
	"context"
	"encoding/json"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
)

// The numbers of all credentials and of who waits for them are counted by one
// worker at a time, which leaves them in one key; each worker reads that when it
// is scraped. Whoever finds that a census is due takes it.
const (
	censusKey = "stepworker:census"
	censusDue = "stepworker:census:taken" // while it is there, none is due

	censusEvery = 5 * time.Second
	// censusShare bounds what large ones cost: so many times as long as one took
	// it is until the next.
	censusShare = 20
	// censusTime is how long one may take, and censusLasts how long its numbers
	// are told beyond the time at which the next was due.
	censusTime  = time.Minute
	censusLasts = 2 * time.Minute
)

// censusVersion is that of its JSON.
const censusVersion = 1

type census struct {
	V    int                     `json:"v"`
	Rows []credentials.CensusRow `json:"rows"`
}

// takeCensus counts, if it is due.
func (p *Pool) takeCensus(ctx context.Context) {
	due, err := p.rdb.SetNX(ctx, censusDue, p.resumer.me, censusTime).Result()
	if err != nil || !due {
		return
	}
	begun := time.Now()
	rows, err := p.cfg.Store.Census(ctx)
	if err != nil {
		if p.base.Err() == nil {
			p.log.Warn("credentials cannot be counted", "error", err.Error())
		}
		return
	}
	// A tick of somebody's is not to come just before it is due.
	next := max(censusEvery-500*time.Millisecond, censusShare*time.Since(begun))
	raw, err := json.Marshal(census{censusVersion, rows})
	if err == nil {
		err = p.rdb.Set(ctx, censusKey, raw, next+censusLasts).Err()
	}
	if err == nil {
		err = p.rdb.PExpire(ctx, censusDue, next).Err()
	}
	if err != nil && p.base.Err() == nil {
		p.log.Warn("the count of credentials cannot be kept", "error", err.Error())
	}
}

// keepCensus takes one at once, and whenever it is due.
func (p *Pool) keepCensus() {
	ctx, cancel := context.WithTimeout(p.base, censusTime)
	p.takeCensus(ctx)
	cancel()
	p.every(censusEvery, nil, p.takeCensus)
}

// readCensus is nil where there is none, or one of another build's.
func readCensus(cmd *redis.StringCmd) []credentials.CensusRow {
	var c census
	raw, err := cmd.Bytes()
	if err != nil || json.Unmarshal(raw, &c) != nil || c.V != censusVersion {
		return nil
	}
	if c.Rows == nil {
		return []credentials.CensusRow{}
	}
	return c.Rows
}
