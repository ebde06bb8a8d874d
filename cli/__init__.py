"""The command line of logitstore: every command parses, calls one library function, and renders."""
