"""The commands of `plan`, one a file, each imported only when it is called."""
