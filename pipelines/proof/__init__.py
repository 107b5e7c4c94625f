"""The proof: generators retrained on arms of a run, scored against one reference, and the gain with its interval."""
