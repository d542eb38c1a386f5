"""Bad input through the real command line: is every refusal clear, quick and harmless?"""
