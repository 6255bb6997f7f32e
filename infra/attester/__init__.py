"""The attester process: TPM and DCAP evidence, from real devices or, in development, from swtpm and a made-up PCK chain."""
