"""DIMSE as service class user: one association is opened for one piece of work and released after it.

association · find · move · get · store · commitment, each named by its service (PS3.4 annexes B, C, J; PS3.7).
"""
