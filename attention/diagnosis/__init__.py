"""Which known mistake an attention makes. No other folder imports this."""
