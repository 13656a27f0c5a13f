"""What the commands do: resolve settings, run, watch, show. The command line itself is `cli`."""
