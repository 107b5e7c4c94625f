"""The contract on disk: shards, manifests, views and the run directory. Imports neither torch nor ray."""
