// Makes a component of a script for `wasi:http`: node build.mjs WIT SCRIPT COMPONENT

import { writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const [witPath, sourcePath, target] = process.argv.slice(2);
const { component } = await componentize({ sourcePath, witPath, worldName: "wasi:http/proxy" });
await writeFile(target, component);
