"""The relay: carries row documents between replicas and keeps ordinary tables equal to them.

Each module is imported by its own name, so that a client that never runs a relay needs neither
Postgres nor its driver.
"""
