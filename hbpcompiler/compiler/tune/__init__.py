"""Measurements that decide: figures of this machine, and races between routes."""
