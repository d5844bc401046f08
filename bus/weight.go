package bus

// payloadUnit is how many bytes of a payload count as one where notifications are counted to bound what is kept of them.
const payloadUnit = 1 << 10

// weight is what a payload counts: one, and one more for each KiB, so that a bound on the count is one on the bytes too.
func weight(payload string) int { return 1 + len(payload)/payloadUnit }

// fits reports whether a payload may be added to what weighs held. What is empty takes any, unless it is to keep nothing.
func fits(payload string, held, limit int) bool {
	return held+weight(payload) <= limit || held == 0 && limit > 0
}
