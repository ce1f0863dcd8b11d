"""The subcommands of the command line: their options, output and exit codes."""
