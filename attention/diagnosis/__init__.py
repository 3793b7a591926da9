"""Diagnosis of known mistakes. No other folder imports this one."""
