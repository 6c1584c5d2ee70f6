"""The commands' signatures: options, their help, and the call of what does the work."""
