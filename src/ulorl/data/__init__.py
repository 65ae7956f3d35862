"""Problems: loading them, encoding their prompts, their order."""
