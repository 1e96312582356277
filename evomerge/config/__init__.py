"""The job file: parsing, checking, and assembling what it asks for."""
