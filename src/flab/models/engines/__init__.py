"""Text generation: one protocol, and the engines behind it."""
