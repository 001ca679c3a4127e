/** The command line can't be understood: exit code 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
  readonly code = 'ERR_USAGE';
  readonly hint: string;

  /** `command` is the one whose help would explain. */
  constructor(message: string, command?: string) {
    super(message);
    this.hint = `See: retrovf ${command === undefined ? '' : `${command} `}--help`;
  }
}
