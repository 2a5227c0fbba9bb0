"""Explanation: what a connectome method attends to, as tables and figures."""
