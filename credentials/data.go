package credentials

// DataRequest is one call of a storage function by a script.
type DataRequest struct {
	CredentialID string
	CycleID      string // "": what all cycles share
	Op           string // list_values list_keys get set append delete delete_all increment decrement
	Key          string
	Value        string  // set, append
	Amount       float64 // increment, decrement
}

// DataError is a storage function's complaint about what a script asked.
type DataError struct{ Text string }

func (e *DataError) Error() string { return e.Text }
