"""What a release consists of: reproducible distributions, a bill of materials, and a table of licenses."""
