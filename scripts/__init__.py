"""Scripts of the house: what make words run besides the tools themselves."""
