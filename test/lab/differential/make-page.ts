// Makes docs/differential.md from the report of the last run of test/lab/differential.test.ts.

import { readFileSync, writeFileSync } from 'node:fs';
import { page, reportFile, type Report } from './report.js';

const report = JSON.parse(readFileSync(reportFile, 'utf8')) as Report;
writeFileSync(new URL('../../../docs/differential.md', import.meta.url), page(report));
