"""The command line: `edgellm COMMAND ...`, one file a command, each imported when it is asked for."""
