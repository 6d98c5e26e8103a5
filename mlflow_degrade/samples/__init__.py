"""Per-sample scores: the table, its digest, matching and pairing, and the logs it is read from."""
