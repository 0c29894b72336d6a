"""Helpers that several tests share. It holds no tests."""
