"""Explanation: what a method attends to, as tables and figures."""
