"""The ways in that are fuzzed, one module for each; two share what they draw from another."""
