"""One run of a program: its assembly, its loop, its folder, how it goes on."""
