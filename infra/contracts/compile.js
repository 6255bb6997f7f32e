// Compiles src/*.sol and writes artifacts/<Name>.json (ABI, bytecode, compiler). `node compile.js DIR` writes into DIR.
"use strict";
const fs = require("fs");
const path = require("path");
const solc = require("solc");

const sources = path.join(__dirname, "src");
const target = process.argv[2] || path.join(__dirname, "artifacts");

const input = {
  language: "Solidity",
  sources: Object.fromEntries(
    fs.readdirSync(sources).sort().map((name) => [name, { content: fs.readFileSync(path.join(sources, name), "utf8") }])
  ),
  settings: {
    evmVersion: "cancun",
    optimizer: { enabled: true, runs: 200 },
    // The path of a checkout must not change the bytes.
    metadata: { appendCBOR: false },
    outputSelection: { "*": { "*": ["abi", "evm.bytecode.object"] } },
  },
};

function read(name) {
  const file = require.resolve(name);
  return { contents: fs.readFileSync(file, "utf8") };
}

const output = JSON.parse(solc.compile(JSON.stringify(input), { import: read }));
const problems = output.errors || [];
problems.forEach((problem) => console.error(problem.formattedMessage));
if (problems.length) process.exit(1);

fs.mkdirSync(target, { recursive: true });
for (const file of Object.keys(input.sources)) {
  for (const [name, made] of Object.entries(output.contracts[file])) {
    if (name !== path.basename(file, ".sol")) continue;
    const artifact = {
      contract: name,
      compiler: solc.version(),
      evmVersion: input.settings.evmVersion,
      abi: made.abi,
      bytecode: "0x" + made.evm.bytecode.object,
    };
    fs.writeFileSync(path.join(target, name + ".json"), JSON.stringify(artifact, null, 1) + "\n");
    console.log(name, made.evm.bytecode.object.length / 2, "bytes");
  }
}
